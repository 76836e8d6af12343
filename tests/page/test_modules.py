"""The page's modules without elements, in Node: the tree of branches, letters over several tokens, links."""

from itertools import pairwise
from pathlib import Path

import pytest
from modules import run_module

TREE = 'import { Tree, shownTexts } from "./tree.js"; const of = (...ids) => ids.map((id) => ({ id, text: `${id}` }));'


def test_branches_share_what_stands_before(tmp_path: Path) -> None:
    """Would catch a branch that hangs on one that does not hold its place, and a parent that grew into its child."""
    found = run_module(
        tmp_path,
        TREE
        + """
        const tree = new Tree(), ids = (id) => tree.path(id).map((token) => token.id);
        const root = tree.add(null, 0, of(1, 2, 3, 4)), child = tree.add(root.id, 2, of(5, 6));
        const deep = tree.add(child.id, 1, of(7)), late = tree.add(child.id, 3, of(8));
        const own = tree.add(child.id, 0, of(0));
        tree.append(root.id, { id: 9, text: "9" });
        const parents = [deep.parent === root.id, late.parent === child.id, own.parent === null];
        answer([...[root, child, deep, late].map(({ id }) => ids(id)), ...parents]);
        """,
    )
    assert found == [[1, 2, 3, 4, 9], [1, 2, 5, 6], [1, 7], [1, 2, 5, 8], True, True, True]


def test_pruning(tmp_path: Path) -> None:
    """Would catch branches of a branch that stay without it, and a current branch that is gone."""
    found = run_module(
        tmp_path,
        TREE
        + """
        const tree = new Tree(), root = tree.add(null, 0, of(1, 2)), child = tree.add(root.id, 1, of(3));
        const grandchild = tree.add(child.id, 2, of(4)), other = tree.add(null, 0, of(5));
        tree.current = grandchild.id;
        tree.prune(child.id);
        const after = [tree.branches.size, tree.current === root.id];
        tree.prune(root.id);
        tree.prune(other.id);
        answer([...after, tree.branches.size, tree.current, tree.path()]);
        """,
    )
    assert found == [2, True, 0, None, []]


def test_a_link_holds_the_whole_tree(tmp_path: Path) -> None:
    """Would catch a link that loses a name, a branch or which one is current; and one that lets anything in."""
    found = run_module(
        tmp_path,
        TREE
        + """
        import { packed, unpacked } from "./link.js";
        const tree = new Tree(), root = tree.add(null, 0, of(1, 2, 3), "ä 🦊");
        tree.add(root.id, 2, of(4));
        tree.current = root.id;
        const state = { version: 1, settings: {}, tree: tree.toJSON() }, link = await packed(state);
        const back = await Tree.fromJSON((await unpacked(link)).tree, async (ids) => of(...ids));
        const branches = [[["", 0, 0, []]], [["", -1, 0, [1.5]]], [["", -1, -1, []]]];
        const bad = [{ ...state, version: 2 }, { ...state, settings: null }, 7];
        bad.push(...branches.map((each) => ({ ...state, tree: { branches: each } })));
        const links = [...(await Promise.all(bad.map(packed))), "", "*", link.slice(0, 20)];
        const same = JSON.stringify(back.toJSON()) === JSON.stringify(tree.toJSON());
        answer([/^[\\w-]+$/.test(link), same, back.path().length, await Promise.all(links.map(unpacked))]);
        """,
    )
    assert found == [True, True, 3, [None] * 9]


def test_an_axis_has_round_numbers(tmp_path: Path) -> None:
    """Would catch an axis that leaves out the ends of a curve, or whose numbers nobody would write."""
    ranges = [[0.2784, 3.18, 4], [0, 2_977_792, 4], [5.929, 6.052, 4], [0, 1, 4], [1, 1.1, 4]]
    script = 'import { roundNumbers } from "./curve.js"; answer(given.map((range) => roundNumbers(...range)));'
    found = run_module(tmp_path, script, ranges)
    for (low, high, _), numbers in zip(ranges, found, strict=True):
        steps = [after - before for before, after in pairwise(numbers)]
        assert numbers[0] <= low + 1e-9
        assert numbers[-1] >= high - 1e-9
        assert max(steps) == pytest.approx(min(steps))
        assert f"{steps[0]:.1e}"[:3] in ("1.0", "2.0", "2.5", "5.0")
        assert 3 <= len(numbers) <= 7


def test_a_letter_of_several_tokens_stands_whole(tmp_path: Path) -> None:
    """Would catch an emoji, or a letter with its accent, that is cut over two elements."""
    found = run_module(
        tmp_path,
        TREE + "answer(given.map((texts) => shownTexts(texts.map((text) => ({ text })))));",
        [["a", "👩‍", "👩‍👧", "!"], ["e", "\u0301x", ""], ["", "", "🦊", " b"], []],
    )
    assert found == [["a", "", "👩‍👩‍👧", "!"], ["", "e\u0301x", ""], ["", "", "🦊", " b"], []]
