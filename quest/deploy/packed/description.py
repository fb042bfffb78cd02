"""What a packed network consists of, as JSON: the ``quantization_config`` of its config.json. Needs no torch."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from quest.artifacts import ArtifactError

DENSE, MULTIPLES = 2, 3
FORMAT = MULTIPLES
"""Of the folder, the newest that is read; another number means that its tensors or its description are other ones. The
second added `LayerDescription.dense`, the third multiples; the oldest that is enough is written."""
METHOD = "quest"
"""``quant_method``, by which diffusers finds who reads it."""
PARTS = ("unet", "transformer")
"""Names that pipelines have for what denoises."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SiteDescription(_Part):
    """A place where activations are quantized.

    bits: of each activation bit-width that a sampling step may use, each with as many rows of the tables. kind: of the
    grid. layout: of its scales, which broadcasts to an activation. at: their first place in the tables.
    zero_layout, zero_at: the same of its zero points, where they are not those of its scales. multiple_at: the first
    place of its multiples, where it has them, a whole number for each zero point that its scale is multiplied by.
    """

    bits: tuple[int, ...]
    kind: Literal["asymmetric", "symmetric", "legacy_symmetric", "positive"] = "asymmetric"
    layout: tuple[int, ...]
    at: int
    zero_layout: tuple[int, ...] | None = None
    zero_at: int | None = None
    multiple_at: int | None = None

    @property
    def scales(self) -> range:
        """The places of its scales in a row of the tables."""
        return range(self.at, self.at + math.prod(self.layout))

    @property
    def zero_points(self) -> range:
        """The places of its zero points in a row of the tables."""
        first = self.at if self.zero_at is None else self.zero_at
        return range(first, first + math.prod(self.zero_layout or self.layout))

    @property
    def multiples(self) -> range:
        """The places of its multiples in a row of the tables; none where it has no multiples."""
        first = self.multiple_at
        return range(0) if first is None else range(first, first + len(self.zero_points))


class TablesDescription(_Part):
    """Activation scales of the whole network. steps: sampling steps that it was calibrated at. rows, places: the shape
    of the table of scales. zero_point: dtype of the zero points, zero_places: how many a row has, where not as many.
    multiple_places: how many multiples a row has."""

    steps: int
    rows: int
    places: int
    zero_point: str = "uint8"
    zero_places: int | None = None
    multiple_places: int = 0


def is_dense(bits: int) -> bool:
    """Whether codes of so many bits are written without gaps: those of which neither two nor one fill a byte."""
    return bits not in (4, 8)


class LayerDescription(_Part):
    """A layer. bits: of its weight, (out, in, …) ``shape``.

    dense: whether its codes lie without gaps (`bitstream`); else two to a byte up to 4 bits, and one above.
    groups, or group where they are equal: lengths of the runs of consecutive inputs of an output channel that share a
    scale; all of them share one without. zero_point: dtype of the weight's zero points. input: where its input is
    quantized, two places where axis 1 is split at ``split_at``.
    """

    bits: int = Field(ge=2, le=8)
    shape: tuple[int, ...]
    dense: bool = False
    groups: tuple[int, ...] | None = None
    group: int | None = None
    zero_point: str = "uint8"
    input: tuple[SiteDescription, ...] = ()
    split_at: int | None = None

    @property
    def inputs(self) -> int:
        """Inputs of an output channel."""
        return math.prod(self.shape[1:])

    @property
    def runs(self) -> tuple[int, ...]:
        """Lengths of the runs of consecutive inputs that share a scale."""
        if self.group is not None:
            return (self.group,) * (self.inputs // self.group)
        return self.groups or (self.inputs,)

    @property
    def scales(self) -> int:
        """Scales of an output channel."""
        return len(self.runs)

    @property
    def packed_bytes(self) -> int:
        """Bytes of all codes."""
        codes = self.shape[0] * self.inputs
        if self.dense:
            return -(-codes // 8) * self.bits
        return codes if self.bits > 4 else (codes + 1) // 2


class Description(_Part):
    """A packed network. Raises ValueError (pydantic's) for keys that it does not know.

    bits, method: of the whole, as the checkpoint had them. heads: of each attention, by name, where the network's own
    config does not say them. attention: places in the products of an attention, by the names of both.
    correction: channels of the sampler's correction, where there is one. sampler: the settings of the sampler it was
    quantized for. made: what else is known of how it was made.
    """

    quant_method: Literal["quest"] = METHOD
    format: Literal[1, 2, 3] = 1
    bits: str
    method: str
    tables: TablesDescription
    layers: dict[str, LayerDescription]
    attention: dict[str, dict[str, SiteDescription]] = {}
    heads: dict[str, int] = {}
    correction: int | None = None
    sampler: dict[str, Any] = {}
    made: dict[str, Any] = {}

    @model_validator(mode="after")
    def _multiples_are_in_the_tables(self) -> Description:
        operands = [site for sites in self.attention.values() for site in sites.values()]
        sites = [*(site for layer in self.layers.values() for site in layer.input), *operands]
        last, there = max((site.multiples.stop for site in sites), default=0), self.tables.multiple_places
        if last != there:
            raise ValueError(f"tables.multiple_places: found {there}, expected the {last} that are in use")
        if there and self.format < MULTIPLES:
            raise ValueError(f"format: found {self.format}, expected {MULTIPLES} of a network with multiples")
        return self

    def plain(self) -> dict[str, Any]:
        """As JSON, what is at its default left out; inverse of `read`."""
        fixed = {"quant_method": self.quant_method, "format": self.format}
        return fixed | self.model_dump(mode="json", exclude_defaults=True)


def read(content: dict[str, Any]) -> Description:
    """A description from the ``quantization_config`` of a config.json. Raises ArtifactError for what does not fit."""
    found = content.get("format")
    if isinstance(found, int) and found > FORMAT:
        raise ArtifactError(
            f"quantization_config.format: found {found}, this quest reads up to {FORMAT}; install a newer quest"
        )
    try:
        return Description.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("quantization_config", *first["loc"])))
        raise ArtifactError(f"{where}: {first['msg']}; the folder is damaged, fetch or export it again") from error
