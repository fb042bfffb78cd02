"""Which layers need their activation bits: one family at a time is lowered, the rest stays at 8 bits (QuEST, Fig. 3).

Weights have their learned rounding at 8 bits and nothing is finetuned: rounded to nearest, 8 bits alone can change
images more than a family does. Activation scales are shared as the protocol says for 8 bits at every width: its finer
granularity at 4 bits would hide what the bits do. The operands of attention products stay at 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from matplotlib.figure import Figure

from quest.config.values import Bits
from quest.diffusion import sampling
from quest.quantization.network import QuantizedNetwork
from quest.quantization.policy import EIGHT, Policy
from quest.quantization.roles import Role
from quest.report import drawing
from quest.studies import Row
from quest.studies.charts import distinct, line, start_figure, where, with_legend
from quest.studies.closeness import closeness
from quest.studies.subject import Subject

FAMILIES = {
    "feed-forward": (Role.FEED_FORWARD,),
    "attention and projections": (
        *(Role.ATTENTION_Q, Role.ATTENTION_K, Role.ATTENTION_V, Role.ATTENTION_OUT),
        *(Role.CROSS_ATTENTION_K, Role.CROSS_ATTENTION_V, Role.PROJECTION),
    ),
    "convolutions": (Role.CONVOLUTION, Role.SHORTCUT, Role.DOWNSAMPLE, Role.UPSAMPLE),
    "time embedding": (Role.TIME_MLP, Role.TIME_PROJECTION),
    "other conditions": (Role.CONDITION,),
}
LOWERED = (6, 5, 4)


def measure(subject: Subject) -> list[Row]:
    """A row for each family that the network has, and activation bits; at 8 bits all families are the same network."""
    subject = even(subject)
    settings, images = subject.settings, range(subject.settings.analysis.images)

    def draw(network: QuantizedNetwork) -> dict[str, float | int | None]:
        with network.frozen():
            drawn = sampling.draw(subject.model, network, settings, subject.seed, images, subject.device)
        return closeness(drawn, targets)

    targets = sampling.draw(subject.model, subject.model.network, settings, subject.seed, images, subject.device)
    baseline = lowered(subject, None, 8)
    counts = {
        family: sum(layer.role in roles for layer in baseline.layers().values()) for family, roles in FAMILIES.items()
    }
    at_eight = draw(baseline)
    return [
        {
            "family": family,
            "layers": counts[family],
            "activation_bits": bits,
            **(at_eight if bits == 8 else draw(lowered(subject, family, bits))),
        }
        for family in FAMILIES
        if counts[family]
        for bits in (8, *LOWERED)
    ]


def even(subject: Subject) -> Subject:
    """The subject with the granularity of 8 activation bits at every width."""
    quantizer = subject.settings.quantizer
    granularity = dict.fromkeys(quantizer.activation_granularity, quantizer.activation_granularity["8"])
    quantizer = quantizer.model_copy(update={"activation_granularity": granularity})
    return replace(subject, settings=subject.settings.model_copy(update={"quantizer": quantizer}))


def lowered(subject: Subject, family: str | None, bits: int) -> QuantizedNetwork:
    """The network at 8 bits with ``bits`` for the inputs of one family."""
    roles = () if family is None else FAMILIES[family]
    policy = Policy("sensitivity", tuple((str(role), Bits(8, bits)) for role in roles))
    return subject.reconstructed(EIGHT, subject.settings.methods.quest.sets, policy)


def chart(dataset: str, rows: Sequence[Row]) -> Figure:
    """A line a family over activation bits."""
    images = rows[0]["images"]
    title = f"{dataset}: closeness to full precision when one family of layers has fewer activation bits"
    figure, (axes,) = start_figure(title, 8.5, 4.8, 1, 1)
    bits = sorted(distinct(rows, "activation_bits"), reverse=True)
    for index, family in enumerate(distinct(rows, "family")):
        mine = where(rows, family=family)
        label = f"{family} ({mine[0]['layers']} layers)"
        line(axes, index, [(bits.index(row["activation_bits"]), row["psnr"], row["psnr_se"]) for row in mine], label)
    axes.set_xticks(range(len(bits)), [str(b) for b in bits])
    drawing.plain(
        axes,
        f"All else at 8 bits; {images} images, bars: standard error",
        "activation bits of the family",
        "PSNR to full precision (dB) ↑",
    )
    return with_legend(figure, axes, columns=2)
