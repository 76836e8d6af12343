"""What a model costs: parameters by part, memory, and floating-point operations per token."""

from rich.table import Table

from rhapsode.model import LanguageModel, ModelConfig

COUNTED_CONTEXT = 128  # visible positions for which the table counts attention


def flops_per_token(config: ModelConfig, context: int) -> int:
    """Floating-point operations of one token's forward pass: those of matrix products, an addition and a
    multiplication counted as two, as is usual. A training step costs three times as much, by the equations; where
    linear maps are multiplied together (fold.py), it does with fewer.

    context: positions that attention sees; over a window of T tokens from a fresh state, on average (T + 1) / 2.
    """
    return sum(flops_by_part(config, context).values())


def flops_by_part(config: ModelConfig, context: int) -> dict[str, int]:
    """`flops_per_token`, by part of the model."""
    stacked = config.kind == "stacked"
    E, H, heads = config.embed_dim, config.hidden_dim, config.num_heads
    width = E if stacked else H  # what the recurrence puts out and attention reads
    inputs = E + H if config.cell == "elman" else 2 * E
    recurrence = 0 if config.cell == "none" else 2 * H * (inputs + width + (E if config.gate else 0))
    head_sizes = 2 * config.key_dim + 2 * config.value_dim  # queries, keys; values, output transform
    seen = 2 * heads * context * (config.key_dim + config.value_dim)
    attention = 2 * heads * width * head_sizes + seen
    layers = config.num_layers
    attending = {"all": layers, "last": 1, "none": 0}[config.attention]
    return {
        "recurrence": layers * recurrence,
        "attention": attending * attention,
        "feed-forward": layers * 4 * E * E * config.feed_forward,
        "head": 2 * width * config.vocab_size,
        "copy head": 2 * config.copy_dim * (2 * width + context) + (2 * width if config.copy_dim else 0),
    }


def parameters_by_part(model: LanguageModel) -> dict[str, int]:
    """Parameters of each part; a tied head counts as 0."""
    kinds = ("embedding", "recurrence", "attention", "feed-forward", "norms", "head", "copy head")
    parts = dict.fromkeys(kinds, 0)
    names = (
        ("embeddings.", "embedding"),
        ("norm", "norms"),
        ("feed_forward.0.", "norms"),
        ("rnn.", "recurrence"),
        ("attention.", "attention"),
        ("feed_forward.", "feed-forward"),
        ("lm_head.", "head"),
        ("copy_head.", "copy head"),
    )
    for name, parameter in model.named_parameters():
        part = next(part for piece, part in names if piece in name)
        parts[part] += parameter.numel()
    return parts


def cost_table(model: LanguageModel) -> Table:
    """Parameters, memory and FLOPs, for the terminal."""
    config = model.config
    parameters, flops = parameters_by_part(model), flops_by_part(config, COUNTED_CONTEXT)
    total = sum(parameters.values())
    table = Table(title=f"{config.kind} model, {total:,} parameters", title_justify="left")
    table.add_column("part")
    for heading in ("parameters", "share", "FLOPs per token"):
        table.add_column(heading, justify="right")
    for part, count in parameters.items():
        if count or flops.get(part):
            table.add_row(part, f"{count:,}", f"{count / total:.1%}", f"{flops.get(part, 0):,}")
    table.add_section()
    table.add_row("all", f"{total:,}", "", f"{sum(flops.values()):,}")
    cached = config.num_heads * (config.key_dim + config.value_dim)
    attending = {"all": config.num_layers, "last": 1, "none": 0}[config.attention]
    hidden = 0 if config.cell == "none" else 4 * config.num_layers * config.hidden_dim
    kept = 4 * attending * cached + (4 * config.copy_dim + 8 if config.copy_dim else 0)  # an id has 8 bytes
    table.caption = (
        f"weights {4 * total / 1e6:.1f} MB; state {hidden:,} bytes plus"
        f" {kept:,} per token; FLOPs of a forward pass that attends to {COUNTED_CONTEXT} tokens,"
        " training takes three times as many"
    )
    return table
