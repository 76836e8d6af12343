"""The tokenizer folder as the course's program reads it, against transformers itself."""

import random
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

from rhapsode.course import AutoTokenizer, CourseTokenizer, RNNLanguageModel, complete
from rhapsode.tokenizer import Tokenizer, train_tokenizer

TEXTS = ["Once upon a time , there was", "  a  b\n\nc ", "</s>x <extra_id_3>y", "😀 tea .", "", " ", "don't . ' x '"]


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "data" / "course" / "my_tokenizer"


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    pytest.importorskip("transformers")
    return AutoTokenizer.from_pretrained(folder)


def test_the_folder_reads_and_writes_as_transformers_does(folder: Path, theirs: Any) -> None:
    """A special token dropped or cut into characters, a space too many: at each of 500 random completions."""
    ours = CourseTokenizer(folder)
    assert (len(ours), ours.vocab_size) == (len(theirs), theirs.vocab_size)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)
    assert torch.equal(ours.encode("a cat", return_tensors="pt"), theirs.encode("a cat", return_tensors="pt"))
    generator = random.Random(0)
    marks = [ours.encode(text, add_special_tokens=False) for text in (".", "?", "n't", "'s", "'ve", "' ", ",")]
    for _ in range(500):
        ids = [generator.randrange(len(ours)) for _ in range(30)] + generator.choice(marks)
        generator.shuffle(ids)
        for how in ({}, {"skip_special_tokens": True}, {"clean_up_tokenization_spaces": False}):
            assert ours.decode(ids, **how) == theirs.decode(ids, **how)
        assert ours.decode(torch.tensor(ids)) == theirs.decode(torch.tensor(ids))


def test_special_tokens_are_kept_and_spaces_cleaned_up(folder: Path) -> None:
    """The two examples of the contract."""
    tokenizer = CourseTokenizer(folder)
    ids = tokenizer.encode("it was too . <extra_id_14> </s>", add_special_tokens=False)
    assert tokenizer.decode(ids) == "it was too.<extra_id_14></s>"
    assert Tokenizer.load(folder).decode(ids) == "it was too ."


@pytest.mark.parametrize("kind", ["bpe", "unigram", "characters"])
def test_a_folder_of_our_own_is_read_as_transformers_reads_it(kind: str, tmp_path: Path) -> None:
    """split_special_tokens of the folder's config, and cleaning up, which transformers leaves out for BPE."""
    transformers = pytest.importorskip("transformers")
    train_tokenizer(["Tom the cat saw a red hat . </s>" * 9], kind, 300).save(tmp_path)
    (tmp_path / "SHA256SUMS").unlink()  # the change below is meant
    config = tmp_path / "tokenizer_config.json"
    for cleaned in (False, True):
        old, new = f": {str(not cleaned).lower()},", f": {str(cleaned).lower()},"
        text = config.read_text()
        config.write_text(text.replace(f'"clean_up_tokenization_spaces"{old}', f'"clean_up_tokenization_spaces"{new}'))
        ours, theirs = CourseTokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
        for text in ("Tom saw a hat .", "a </s> hat"):
            ids = theirs.encode(text, add_special_tokens=False)
            assert ours.encode(text, add_special_tokens=False) == ids
            assert ours.decode([*ids, 1]) == theirs.decode([*ids, 1])


def test_complete_takes_any_tokenizer(folder: Path, theirs: Any) -> None:
    """transformers' own, the course's, the library's, and this package's, which leaves special tokens out."""
    torch.manual_seed(1)
    lm = RNNLanguageModel(4, 6, 1024, 3, 2)
    texts = []
    for tokenizer in (theirs, CourseTokenizer(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))):
        torch.manual_seed(2)
        texts.append(complete(lm, tokenizer, "Once upon a time", 60, temperature=1.0))
    torch.manual_seed(2)
    new = lm.generate(torch.tensor([theirs.encode("Once upon a time", add_special_tokens=False)]), 60, 1.0)
    assert texts[0] == texts[1] == theirs.decode(new)
    assert "<extra_id_" in texts[0]
    assert texts[2] == theirs.decode(new, clean_up_tokenization_spaces=False)
    torch.manual_seed(2)
    assert "<extra_id_" not in complete(lm, Tokenizer.load(folder), "Once upon a time", 60, 1.0)


def test_the_stand_in_without_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is read all the same; a name, which would have to be fetched, says what is missing."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert isinstance(AutoTokenizer.from_pretrained(str(folder)), CourseTokenizer)
    with pytest.raises(ImportError, match="t5-small is not a folder, and only transformers can fetch it: pip install"):
        AutoTokenizer.from_pretrained("t5-small")
