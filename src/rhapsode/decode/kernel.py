"""A model packed for the C kernel: its maps folded, laid out in panels, in the structures of native/model.h."""

import copy
import ctypes
import functools
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_int32, c_int64, c_void_p
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rhapsode.cells import GatedCell, activation_of
from rhapsode.decode.compiled import kernel_library
from rhapsode.fold import Affine, side_by_side
from rhapsode.model import Block, LanguageModel, PlainModel, SelfAttention, StackedModel

PAGE = 32  # tokens
RELU, TANH, GATED = range(3)
KNOWN = (PlainModel, StackedModel)

CHOICE = np.dtype(
    [
        *((name, "f8") for name in ("temperature", "top_p", "min_p", "repetition", "frequency", "presence")),
        *((name, "u8") for name in ("seed", "drawn", "bias", "seen", "written")),
        *((name, "i4") for name in ("top_k", "alternatives")),
    ]
)


class _Map(Structure):
    _fields_ = (("inputs", c_int32), ("outputs", c_int32), ("weight", c_void_p), ("bias", c_void_p))


class _Block(Structure):
    _fields_ = (
        *((name, c_int32) for name in ("hidden", "cell", "heads", "key_dim", "value_dim", "padded_value")),
        *((name, c_int64) for name in ("hidden_offset", "page_offset")),
        *((name, _Map) for name in ("input", "gate", "recurrent", "output")),
        ("look", _Map * 2),
        *((name, _Map) for name in ("attended", "wide", "narrow")),
    )


class _Copies(Structure):
    _fields_ = (
        ("size", c_int32),
        *((name, c_int64) for name in ("hidden_offset", "page_offset")),
        *((name, _Map) for name in ("query", "key", "gate")),
    )


class Network(Structure):
    _fields_ = (
        *((name, c_int32) for name in ("plain", "vocab", "width", "num_blocks", "pair_rows", "padded")),
        ("stride", c_int64),
        *((name, c_void_p) for name in ("inputs", "pairs")),
        ("blocks", POINTER(_Block)),
        ("head", _Map * 2),
        ("copies", _Copies),
        *((name, c_void_p) for name in ("x", "u", "a", "b", "logits", "scores", "weights")),
        *((name, c_void_p) for name in ("slot", "place", "order", "from_", "to")),
    )


class Rows(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("hidden", "pages", "length", "token")),
        *((name, c_int64) for name in ("hidden_stride", "most_pages")),
    )


class Results(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("ids", "log_probabilities")),
        ("most", c_int32),
        *((name, c_void_p) for name in ("alternatives", "their_log_probabilities")),
    )


class Layout(NamedTuple):
    """How wide the compiled kernel's vectors are."""

    panel: int
    lanes: int
    logits_at_once: int

    def up(self, size: int, to: int = 0) -> int:
        """The next multiple of `to`, or of a vector."""
        to = to or self.lanes
        return -(-size // to) * to


@functools.cache
def usable_kernel() -> tuple[ctypes.CDLL, Layout] | None:
    """The compiled kernel, if there is one and a row's sums do not depend, to the bit, on the rows beside it."""
    library = kernel_library()
    layout = None if library is None else layout_of(library)
    if library is None or layout is None or not _rows_stand_alone(library, layout):
        return None
    return library, layout


def _rows_stand_alone(library: ctypes.CDLL, layout: Layout) -> bool:
    most, inputs, outputs = 2 * layout.logits_at_once + 1, 37, layout.panel
    random = np.random.default_rng(0)
    x, weight, bias = (
        random.standard_normal(shape).astype(np.float32) for shape in ((most, inputs), (inputs, outputs), outputs)
    )
    pointers = np.zeros((2, most), np.uintp)
    network = Network(stride=inputs, from_=pointers[0].ctypes.data, to=pointers[1].ctypes.data)
    map_ = _Map(inputs, outputs, weight.ctypes.data, bias.ctypes.data)

    def product(count: int) -> np.ndarray:
        y = np.zeros((count, outputs), np.float32)
        at = ctypes.addressof(network), ctypes.addressof(map_)
        library.rhapsode_apply(*at, count, x[most - count :].ctypes.data, y.ctypes.data, outputs)
        return y

    together = product(most)
    return all(np.array_equal(together[most - count :], product(count)) for count in range(1, most))


def layout_of(library: ctypes.CDLL) -> Layout | None:
    """The layout of a library; None for one that lays out its structures otherwise than this file."""
    sizes = (c_int32 * 8)()
    library.rhapsode_sizes(sizes)
    panel, page, lanes, logits_at_once, *structures = sizes
    expected = [*map(ctypes.sizeof, (Network, Rows)), CHOICE.itemsize, ctypes.sizeof(Results)]
    return Layout(panel, lanes, logits_at_once) if [page, *structures] == [PAGE, *expected] else None


class Packed:
    """A model's weights as the kernel wants them; read only, so that any number of `Texts` share it.

    float32, folded in float64. The network's type is one of KNOWN.
    """

    def __init__(self, network: LanguageModel, library: ctypes.CDLL, layout: Layout) -> None:
        self.library, self.layout, self.config = library, layout, network.config
        self._kept: list[Any] = []  # what the structures point to
        self.model = Network(vocab=network.config.vocab_size)
        self.model.padded = layout.up(network.config.vocab_size, layout.panel)
        self.hidden_size = self.page_size = self._widest = 0
        exact = copy.deepcopy(network).cpu().double()
        with torch.no_grad():
            if isinstance(exact, PlainModel):
                blocks = self._plain(exact)
            else:
                assert isinstance(exact, StackedModel)
                blocks = self._stacked(exact)
        self.model.blocks, self.model.num_blocks = (_Block * len(blocks))(*blocks), len(blocks)
        self.model.stride = layout.up(self._widest) + layout.panel

    def _plain(self, network: PlainModel) -> list[_Block]:
        folded = network.folded()
        assert folded.inputs is not None
        self.model.plain, self.model.inputs = 1, self._array(folded.inputs)
        block = self._recurrent(network.rnn)
        *first, last = folded.looks
        self._attending(block, network.attention, [*first, self._scaled(last, network.attention)])
        for i, each in enumerate(folded.scores):
            self.model.head[i] = self._map(each)
        return [block]

    def _stacked(self, network: StackedModel) -> list[_Block]:
        model, pairs = self.model, network.pair_embeddings
        model.width, model.inputs = network.config.embed_dim, self._array(network.embeddings.weight)
        if pairs is not None:
            model.pair_rows, model.pairs = pairs.num_embeddings, self._array(pairs.weight)
        blocks = [self._block(block) for block in network.blocks if isinstance(block, Block)]
        model.head[0] = self._map(_after(network.norm, Affine(network.lm_head.weight, network.lm_head.bias)))
        if (head := network.copy_head) is not None:
            size = head.query_transform.out_features
            query = Affine(head.query_transform.weight * size**-0.5, head.query_transform.bias * size**-0.5)
            maps = [query, *(Affine(each.weight, each.bias) for each in (head.key_transform, head.gate))]
            model.copies = _Copies(size, self.hidden_size, self.page_size)
            model.copies.query, model.copies.key, model.copies.gate = (
                self._map(_after(network.norm, each)) for each in maps
            )
            self.hidden_size += self.layout.up(size)
            self.page_size += (size + 1) * PAGE
        return blocks

    def _block(self, block: Block) -> _Block:
        made = _Block(hidden_offset=self.hidden_size)
        if block.rnn is not None:
            made = self._recurrent(block.rnn)
            self._inputs(made, block)
        if block.attention is not None and block.attention_norm is not None:
            looks = self._scaled(side_by_side(block.attention.transforms), block.attention)
            self._attending(made, block.attention, [_after(block.attention_norm, looks)])
            made.attended = self._map(
                Affine(block.attention.output_transform.weight, block.attention.output_transform.bias)
            )
        if block.feed_forward is not None:
            norm, wide, _, narrow = block.feed_forward
            assert isinstance(wide, nn.Linear)
            assert isinstance(narrow, nn.Linear)
            made.wide = self._map(_after(norm, Affine(wide.weight, wide.bias)))
            made.narrow = self._map(Affine(narrow.weight, narrow.bias))
        return made

    def _inputs(self, made: _Block, block: Block) -> None:
        """The maps before and after a block's recurrence."""
        rnn, norm = block.rnn, block.rnn_norm
        assert rnn is not None
        assert norm is not None
        cell = rnn.cell
        if isinstance(cell, GatedCell):
            inputs = side_by_side((cell.keep, cell.candidate))
        else:
            inputs = Affine(cell.i2h.weight, cell.i2h.bias + cell.h2h.bias)
        made.input = self._map(_after(norm, inputs))
        if rnn.gate is not None:
            made.gate = self._map(_after(norm, Affine(rnn.gate.weight, rnn.gate.bias)))
        made.output = self._map(Affine(rnn.out.weight, rnn.out.bias))

    def _recurrent(self, rnn: Any) -> _Block:
        made = _Block(hidden=rnn.out.in_features, hidden_offset=self.hidden_size)
        self.hidden_size += self.layout.up(made.hidden)
        if isinstance(rnn.cell, GatedCell):
            made.cell = GATED
        else:
            made.cell = {"relu": RELU, "tanh": TANH}[activation_of(rnn.cell)]
            made.recurrent = self._map(Affine(rnn.cell.h2h.weight, None))
        return made

    @staticmethod
    def _scaled(looks: Affine, attention: SelfAttention) -> Affine:
        """The map to queries, keys and values with queries over sqrt(key_dim), so that scores need no division."""
        size = attention.query_transform.out_features
        scale = torch.ones(looks.weight.shape[0], dtype=looks.weight.dtype)
        scale[:size] = (size // attention.num_heads) ** -0.5
        return Affine(looks.weight * scale[:, None], None if looks.bias is None else looks.bias * scale)

    def _attending(self, block: _Block, attention: SelfAttention, looks: Sequence[Affine]) -> None:
        block.heads = attention.num_heads
        block.key_dim = attention.key_transform.out_features // block.heads
        block.value_dim = attention.value_transform.out_features // block.heads
        block.padded_value = self.layout.up(block.value_dim)
        block.page_offset = self.page_size
        self.page_size += PAGE * block.heads * (block.key_dim + block.padded_value)
        for i, each in enumerate(looks):
            block.look[i] = self._map(each)

    def _map(self, affine: Affine) -> _Map:
        """Weights by panels of outputs: (panels, in, panel), zeros where outputs end."""
        (outputs, inputs), panel = affine.weight.shape, self.layout.panel
        padded = self.layout.up(outputs, panel)
        weight, bias = torch.zeros(padded, inputs), torch.zeros(padded)
        weight[:outputs] = affine.weight
        if affine.bias is not None:
            bias[:outputs] = affine.bias
        if outputs != self.config.vocab_size:
            self._widest = max(self._widest, padded)
        self._widest = max(self._widest, inputs)
        panels = weight.view(-1, panel, inputs).transpose(1, 2)
        return _Map(inputs, outputs, self._array(panels), self._array(bias))

    def _array(self, tensor: Tensor) -> int:
        """The address of a float32 copy, which lives as long as this object; vectors may be read beyond its end."""
        values = tensor.detach().to(torch.float32).contiguous().numpy().ravel()
        kept = aligned(values.size + self.layout.lanes, np.float32)
        kept[: values.size] = values
        self._kept.append(kept)
        return kept.ctypes.data


def aligned(size: int, kind: Any) -> np.ndarray:
    """An array of zeros that begins where a line of the processor's cache does."""
    kind = np.dtype(kind)
    room = np.zeros(size * kind.itemsize + 64, np.uint8)
    begin = -room.ctypes.data % 64
    return room[begin : begin + size * kind.itemsize].view(kind)


def _after(norm: nn.Module, then: Affine) -> Affine:
    """What stands behind a norm, with the norm's weight in it."""
    weight = norm.weight
    assert isinstance(weight, Tensor)
    return Affine(then.weight * weight, then.bias)
