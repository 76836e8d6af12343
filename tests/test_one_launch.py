"""The recurrences in one launch: what Triton's interpreter makes of the kernels, and its compiler, without a GPU."""

import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import rhapsode.kernels
from rhapsode.kernels import form
from rhapsode.kernels.gated import gated_recurrence
from rhapsode.kernels.recurrence import elman_deltas, recurrence, stepwise
from rhapsode.kernels.recurrence_forms import ON_CHIP, _why_it_failed
from rhapsode.model import ModelConfig, build_model

FILE = Path(rhapsode.kernels.__file__).with_name("one_launch.py")
SIZES = [(1, 1, 1), (1, 17, 3), (5, 3, 20), (4, 16, 16), (3, 33, 65)]  # T, B, H: blocks have 16 rows, 16 to 128 columns
SHARED_KB = {(8, 0): 163, (8, 6): 99, (8, 9): 99, (9, 0): 227, (10, 0): 227, (12, 0): 99}  # of a block: CUDA's table
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton: pip install 'rhapsode[gpu]', or make test"
)


def loaded(interpreted: bool) -> ModuleType:
    """A copy of the kernels: Triton decides when a kernel is defined whether it is interpreted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", str(int(interpreted)))
        spec = importlib.util.spec_from_file_location("rhapsode.kernels.one_launch", FILE)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def compiled_sum() -> Any:
    """Triton's own sum, a kernel as ours are, as it is compiled."""
    return importlib.import_module("triton.language").sum


@pytest.fixture(scope="module", autouse=True)
def interpreted(compiled_sum: Any) -> Iterator[ModuleType]:
    """The kernels run on CPU tensors, statement by statement; other tests see nothing of it."""
    module = loaded(interpreted=True)

    def added_up(x: Any, axis: int) -> Any:  # Triton's own would leave it interpreting for good
        return module.tl.reduce(x, axis, module.tl.standard._sum_combine)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.tl, "sum", added_up)
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setitem(sys.modules, "rhapsode.kernels.one_launch", module)
        patch.setattr(rhapsode.kernels, "one_launch", module, raising=False)
        yield module


@pytest.fixture(params=[False, True], ids=["blocks", "rows"])
def by_rows(interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Both kernels of the Elman recurrence: ROWS of the batch a program, and one."""
    monkeypatch.setattr(interpreted, "_takes_rows", lambda _: request.param)


both_kernels = pytest.mark.usefixtures("by_rows")


def tensors(T: int, B: int, H: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, initial and dL/dh, in float64."""
    generator = torch.Generator().manual_seed(T * 100 + B * 10 + H)

    def make(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return make(T, B, H), make(H, H) / H**0.5, make(B, H), make(T, B, H)


def results(kind: str, function: Any, inputs: tuple[Tensor, ...], upstream: Tensor) -> list[Tensor]:
    """The states and the gradient of each input, in float64."""
    leaves = [each.detach().clone().requires_grad_() for each in inputs]
    with form(kind):
        states = function(*leaves)
    return [
        each.double()
        for each in (states.detach(), *torch.autograd.grad(states, leaves, upstream, materialize_grads=True))
    ]


@both_kernels
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("with_initial", [True, False])
@pytest.mark.parametrize(("T", "B", "H"), SIZES)
def test_elman_is_the_equation(T: int, B: int, H: int, with_initial: bool, activation: str) -> None:
    """Catches a transposed weight, a row or column beyond the edge of a block that counts, a lost initial state."""
    x, weight, initial, upstream = tensors(T, B, H)
    inputs = (x, weight, initial) if with_initial else (x, weight)

    def function(x: Tensor, weight: Tensor, initial: Tensor | None = None) -> Tensor:
        return recurrence(x, weight, initial, activation)

    wanted = results("plain", function, inputs, upstream)
    torch.testing.assert_close(results("triton", function, inputs, upstream), wanted, rtol=1e-11, atol=1e-11)
    single = results("triton", function, tuple(each.float() for each in inputs), upstream.float())
    torch.testing.assert_close(single, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("with_initial", [True, False])
@pytest.mark.parametrize(("T", "B", "H"), SIZES)
def test_gated_is_the_equation(T: int, B: int, H: int, with_initial: bool) -> None:
    """Catches s and c exchanged, an entry beyond the edge of a block that counts, a lost initial state."""
    s, _, initial, upstream = tensors(T, B, H)
    x = torch.cat((s, s.flip(0).cos()), dim=-1)
    inputs = (x, initial) if with_initial else (x,)
    wanted = results("plain", gated_recurrence, inputs, upstream)
    torch.testing.assert_close(results("triton", gated_recurrence, inputs, upstream), wanted, rtol=1e-11, atol=1e-11)
    single = results("triton", gated_recurrence, tuple(each.float() for each in inputs), upstream.float())
    torch.testing.assert_close(single, wanted, rtol=1e-5, atol=1e-5)


@both_kernels
def test_finite_differences() -> None:
    """In float64; relu, which has a kink, is compared with the equation above."""
    x, weight, initial, _ = (each.requires_grad_() for each in tensors(3, 2, 3))
    with form("triton"):
        assert torch.autograd.gradcheck(lambda *a: recurrence(*a, "tanh"), (x, weight, initial))
        assert torch.autograd.gradcheck(lambda x, h: gated_recurrence(torch.cat((x, x.sin()), -1), h), (x, initial))


@both_kernels
@pytest.mark.parametrize("cell", ["elman", "gated"])
@pytest.mark.parametrize("cut", [1, 4])
def test_a_cut_changes_nothing(cell: str, cut: int) -> None:
    """Catches a state that is not handed on, or whose gradient does not come back: the halves are the whole."""
    x, weight, initial, upstream = tensors(5, 17, 20)

    def whole(x: Tensor, weight: Tensor, initial: Tensor) -> Tensor:
        return (
            recurrence(x, weight, initial)
            if cell == "elman"
            else gated_recurrence(torch.cat((x, x @ weight), -1), initial)
        )

    def halves(x: Tensor, weight: Tensor, initial: Tensor) -> Tensor:
        first = whole(x[:cut], weight, initial)
        return torch.cat((first, whole(x[cut:], weight, first[-1])))

    inputs = (x, weight, initial)
    ours = results("triton", halves, inputs, upstream)
    torch.testing.assert_close(ours, results("triton", whole, inputs, upstream), rtol=1e-12, atol=1e-12)


@both_kernels
def test_memory_around_is_left_alone(interpreted: ModuleType) -> None:
    """Catches a store beyond the last row or step, which a comparison of the results would not see."""
    T, B, H = 3, 17, 20
    x, weight, initial, upstream = tensors(T, B, H)

    def guarded(*shape: int) -> tuple[Tensor, Tensor]:
        count = torch.Size(shape).numel()
        memory = torch.full((count + 2 * 4096,), 7.0, dtype=torch.float64)
        return memory, memory[4096:-4096].view(shape)

    memories = []
    for run in (
        lambda states: interpreted.elman_states(states, weight, initial, "tanh"),
        lambda grad: interpreted.elman_deltas(grad, x, weight, "tanh"),
    ):
        memory, here = guarded(T, B, H)
        run(here.copy_(upstream))
        memories.append(memory)
    last, here = guarded(T, B, 2 * H)
    interpreted.gated_states(here.copy_(torch.cat((x, upstream), -1)), initial)
    for memory in (*memories, last):
        assert (memory[:4096] == 7).all()
        assert (memory[-4096:] == 7).all()


@both_kernels
def test_transposed_tensors_are_read_as_they_are() -> None:
    """Catches a kernel that takes a batch-major gradient, state or weight for the contiguous one that it expects."""
    x, weight, initial, upstream = tensors(5, 3, 20)
    turned = [each.transpose(0, 1).contiguous().transpose(0, 1) for each in (x, weight, initial, upstream)]
    with form("triton"):
        for function, inputs in ((recurrence, turned[:3]), (gated_recurrence, (turned[0].repeat(1, 1, 2), turned[2]))):
            leaves = [each.detach().requires_grad_() for each in inputs]
            ours = torch.autograd.grad(function(*leaves), leaves, turned[3])
            straight = tuple(each.detach().contiguous() for each in inputs)
            torch.testing.assert_close(
                list(ours), results("plain", function, straight, upstream)[1:], rtol=0, atol=1e-12
            )


@both_kernels
def test_what_is_not_a_number_shows() -> None:
    """Catches a relu that turns a diverged row into zeros; the other rows of its block are as they were."""
    x, weight, initial, _ = tensors(3, 4, 5)
    x[0, 1, 2] = torch.nan
    with form("triton"):
        for activation in ("relu", "tanh"):
            h = recurrence(x, weight, initial, activation)
            assert h[1:, 1].isnan().all()
            assert h[:, [0, 2, 3]].isfinite().all()


@both_kernels
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # as meant
def test_large_numbers_saturate() -> None:
    """Catches an exp that overflows: tanh is then 1 or -1, and a gate shut or open."""
    x = torch.tensor([[[1000.0, -1000.0, 0.0]]])
    with form("triton"):
        assert recurrence(x, torch.zeros(3, 3), None, "tanh").flatten().tolist() == [1, -1, 0]
        gates = torch.tensor([[[200.0, -200.0, 3.0, 4.0]]])
        assert gated_recurrence(gates, torch.tensor([[10.0, 20.0]])).flatten().tolist() == [10, 4]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits(dtype: torch.dtype) -> None:
    """Catches sums in 16 bits, and a state that is carried with other bits than it has in memory."""
    x, weight, initial, upstream = (each.to(dtype) for each in tensors(6, 17, 20))
    inputs = (torch.cat((x, x), dim=-1), initial)
    exact = results("plain", gated_recurrence, tuple(each.double() for each in inputs), upstream.double())
    within = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(results("triton", gated_recurrence, inputs, upstream), exact, rtol=within, atol=within)
    if dtype == torch.float16:  # the interpreter multiplies matrices of bfloat16 as if they were integers
        exact = results("plain", recurrence, tuple(each.double() for each in (x, weight, initial)), upstream.double())
        ours = results("triton", recurrence, (x, weight, initial), upstream)
        torch.testing.assert_close(ours[0], exact[0], rtol=within, atol=within)


def tensor_core(self: Any, a: Any, b: Any, sum_so_far: Any, precision: Any, _: Any) -> Any:
    """A product as tensor cores make it of float32: factors rounded to 11 bits, or to two numbers of 11 bits each."""
    from triton.runtime.interpreter import TensorHandle

    def rounded(x: np.ndarray) -> np.ndarray:
        return ((x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)

    assert precision.name in ("TF32", "TF32x3")
    x, y = rounded(a.data), rounded(b.data)
    product = x @ y
    if precision.name == "TF32x3":
        product += rounded(a.data - x) @ y + x @ rounded(b.data - y)
    return TensorHandle(product + sum_so_far.data, sum_so_far.dtype.scalar)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_rounding_on_tensor_cores(activation: str, interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """What docs/kernels.md says of tf32x3 and TF32, over 128 steps; catches float32 that is multiplied in TF32.

    Emulated: the factors are rounded as on tensor cores, their sums as on a CPU.
    """
    from triton.runtime.interpreter import InterpreterBuilder

    T, B, H = 128, 16, 128
    x, weight, initial, upstream = (each.float() for each in tensors(T, B, H))
    weight *= 3**-0.5  # as it is initialised: uniform within 1 / sqrt(H)
    exact = stepwise(x.double(), weight.double(), initial.double(), activation)
    errors = {}
    with pytest.MonkeyPatch.context() as patch:
        for precision in ("float32", "tf32x3", "tf32"):
            if precision == "tf32x3":
                patch.setattr(InterpreterBuilder, "create_dot", tensor_core)
            monkeypatch.setattr(interpreted, "precision_of", lambda _, now=precision: now.replace("float32", "ieee"))
            states, deltas, exact_deltas = x.clone(), upstream.clone(), upstream.double()
            interpreted.elman_states(states, weight, initial, activation)
            interpreted.elman_deltas(deltas, states, weight, activation)
            elman_deltas(exact_deltas, states.double(), weight.double(), activation)
            pairs = (states, exact), (deltas, exact_deltas)
            errors[precision] = max(float((ours - theirs).norm() / theirs.norm()) for ours, theirs in pairs)
    by_row = x.clone()
    interpreted.elman_states(by_row, weight, initial, activation, by_rows=True)
    assert float((by_row - exact).norm() / exact.norm()) < 3e-7
    assert errors["float32"] < 3e-7
    assert errors["tf32x3"] < 3e-7
    assert 5e-5 < errors["tf32"] < 5e-4


@both_kernels
@pytest.mark.parametrize("cell", ["elman", "gated"])
def test_models_side_by_side(cell: str) -> None:
    """Catches a program that reads the weights or the rows of another model than its own."""
    x, weight, initial, upstream = (torch.stack([tensors(3, 17, H)[i] for H in (20, 20)]) for i in range(4))
    weight[1] *= -0.5
    x[1] += 1

    def function(x: Tensor, weight: Tensor, initial: Tensor) -> Tensor:
        if cell == "elman":
            return torch.vmap(recurrence)(x, weight, initial)
        return torch.vmap(gated_recurrence)(torch.cat((x, x @ weight[:, None]), -1), initial)

    wanted = results("plain", function, (x, weight, initial), upstream)
    torch.testing.assert_close(results("triton", function, (x, weight, initial), upstream), wanted)


@both_kernels
@pytest.mark.parametrize("cell", ["elman", "gated"])
def test_a_whole_model_loses_the_same(cell: str) -> None:
    """Catches kernels that pass alone and not in their place: dropout, padding, a carried state, all gradients."""
    sizes = {"embed_dim": 12, "hidden_dim": 20, "key_dim": 8, "value_dim": 8}
    config = ModelConfig(vocab_size=30, kind="stacked", num_layers=2, cell=cell, dropout=0.3, **sizes)
    model = build_model(config, seed=0).double().train()
    tokens = torch.arange(2 * 17 * 6).mul(7).remainder(30).view(17, 12)
    targets = tokens.roll(-1, 1)
    targets[3:, 9:] = -100

    def run() -> list[Tensor]:
        torch.manual_seed(0)
        first, state = model.loss(tokens[:, :5], targets[:, :5])
        second, state = model.loss(tokens[:, 5:], targets[:, 5:], state)
        return [first.detach(), second.detach(), *torch.autograd.grad(first + second, list(model.parameters()))]

    found = []
    for kind in ("plain", "triton"):
        with form(kind):
            found.append(run())
    torch.testing.assert_close(found[1], found[0], rtol=1e-11, atol=1e-12)


def test_the_trial_of_a_card(interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a trial that finds nothing, or finds fault with kernels that are right."""
    cpu = torch.device("cpu")
    for cell, activation in (("elman", "relu"), ("elman", "tanh"), ("gated", "relu")):
        assert _why_it_failed(cell, 20, torch.float32, cpu, activation) is None
    right = interpreted.elman_deltas
    for wrong in (False, True):
        turned = lambda g, h, w, a, rows, wrong=wrong: right(g, h, w.t() if rows == wrong else w, a, rows)  # noqa: E731
        monkeypatch.setattr(interpreted, "elman_deltas", turned)
        found = _why_it_failed("elman", 20, torch.float32, cpu, "relu")
        assert found is not None
        assert found.startswith("its gradients differ from the equation's by")
    monkeypatch.setattr(interpreted, "elman_states", lambda *_: 1 / 0)
    assert _why_it_failed("elman", 20, torch.float32, cpu, "relu") == "ZeroDivisionError: division by zero"


class Compiled(NamedTuple):
    """What a kernel takes on a chip: bytes of shared memory, and bytes a thread for which no register is left."""

    shared: int
    spilled: int


def compiled(module: ModuleType, kernel: str, card: tuple[int, int], hidden_dim: int, precision: str) -> Compiled:
    """What Triton's own compiler and NVIDIA's assembler make of a kernel; both need no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget

    function, width = getattr(module, kernel), module.width_of(hidden_dim)
    pointer = "*bf16" if precision == "bfloat16" else "*fp32"
    constants = {"relu": False, "sums": triton.language.float32, "rows": module.ROWS, "width": width}
    constants |= {"precision": "ieee" if precision == "bfloat16" else precision, "entries": module.ENTRIES}
    names = function.arg_names
    constants = {name: value for name, value in constants.items() if name in names}
    signature = {name: "i32" if name in "TBH" else pointer for name in names} | dict.fromkeys(constants, "constexpr")
    known = {name for name in names if signature[name] == pointer or (name == "H" and hidden_dim % 16 == 0)}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in known}
    source = triton.compiler.ASTSource(
        function, signature, {(names.index(name),): value for name, value in constants.items()}, aligned
    )
    warps = {"_elman": module.warps_of(width), "_row": module.warps_of_a_row(width)}.get(
        kernel[: kernel.rindex("_")], 4
    )
    result = triton.compile(source, GPUTarget("cuda", card[0] * 10 + card[1], 32), {"num_warps": warps})
    return Compiled(result.metadata.shared, spilled(result.asm["cubin"]))


def spilled(binary: bytes) -> int:
    """Bytes of the stack that a thread needs, of which NVIDIA's own tool knows."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    stack = re.search(r"STACK:(\d+)", said)
    assert stack is not None, said
    return int(stack[1])


# Of each kind of chip and of instructions one; the others differ in little, and a compilation takes half a second.
@pytest.mark.parametrize(
    ("card", "precision"),
    [((9, 0), "tf32x3"), ((9, 0), "tf32"), ((9, 0), "bfloat16"), ((8, 6), "tf32x3"), ((12, 0), "tf32x3")],
    ids=str,
)
def test_weights_of_the_largest_size_stay_on_the_chip(
    card: tuple[int, int], precision: str, tmp_path: Path, compiled_sum: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an entry of ON_CHIP that no card of its kind can hold, and a kernel that the compiler refuses."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    module, largest = loaded(interpreted=False), ON_CHIP[card][precision]
    monkeypatch.setattr(module.tl, "sum", compiled_sum)
    parts, size = (2 if precision == "tf32x3" else 1), (2 if precision == "bfloat16" else 4)
    for kernel in ("_elman_states", "_elman_deltas"):
        took = compiled(module, kernel, card, largest, precision)
        assert took.spilled == 0
        assert took.shared == parts * size * largest * (largest + module.ROWS)  # as recurrence_forms.py says
        assert took.shared <= SHARED_KB[card] * 1024
    if precision != "tf32":
        for kernel in ("_row_states", "_row_deltas"):
            took = compiled(module, kernel, card, min(largest, module.WIDEST_ROW), precision)
            assert took.spilled == 0
            assert took.shared <= 8192  # no weights: what a step hands from warp to warp
    if card == (9, 0) and precision != "tf32":
        for kernel in ("_gated_states", "_gated_deltas"):
            assert compiled(module, kernel, card, 100, precision) == Compiled(0, 0)


def test_every_card_has_room_for_its_entries() -> None:
    """Catches a card that was added with another's sizes."""
    assert ON_CHIP.keys() == SHARED_KB.keys()
    for card, entries in ON_CHIP.items():
        for precision, largest in entries.items():
            entry = {"tf32x3": 8, "tf32": 4, "bfloat16": 2}[precision]
            assert entry * largest * (largest + 16) <= SHARED_KB[card] * 1024 < entry * 2 * largest * (2 * largest + 16)
