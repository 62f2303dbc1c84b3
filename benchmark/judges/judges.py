"""Who judges pictures, sounds and sentences: towers that embed pairs of them, and features for Fréchet distances.

A dataset says by `judged_by` whose they are: "trained" by the suite on a split of the dataset's own
(benchmark/judges/towers.py), or "pretrained" ones, as in the paper. Metrics ask here and do not know which they got.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from benchmark.api import Inapplicable
from benchmark.fitting.network_store import Say, to_stderr
from benchmark.judges import towers
from benchmark.judges.towers import Pair, Things


class Judges(Protocol):
    """`facts`: what is known of them, such as their accuracy on held-out rows.

    Answers lie on the judges' device and depend on the row alone, whatever rows stand beside it. Each raises ValueError
    for a picture or sound that is not finite.
    """

    facts: dict[str, Any]

    def embed(self, pair: Pair, modality: str, things: Things) -> Tensor:
        """(rows, size) float32 of unit norm. The two towers of a pair, such as ("text", "image") in any order, share
        one space."""
        ...

    def features(self, modality: str, things: Things) -> Tensor:
        """(rows, size) float32, for Fréchet distances; (parts of all rows, size) where a thing has several."""
        ...

    # Judges that hear a sound in parts, each with features of its own, also offer `parts(modality, things)`: how many
    # each row has, (rows,) int64.

    def digits(self, modality: str, things: Things) -> Tensor:
        """The digit that each row shows, (rows,) int64; -1 where none can be read. Trained judges only."""
        ...

    def protocol(self, metric: str) -> dict[str, Any]:
        """What a number of the metric was read with: JSON values, and all that judges of another kind would change."""
        ...


def of(data: Any, device: str = "cpu", say: Say = to_stderr) -> Judges:
    """The dataset's judges: those of this process, else cached ones, else ones that are trained or loaded now.

    say: gets a line now and then. Raises Inapplicable for a dataset that names none.
    """
    if judged_by(data) == "pretrained":
        from benchmark.judges import pretrained_judges

        return pretrained_judges.of(data, device)
    return towers.of(data, device, say)


def protocol(data: Any, metric: str) -> dict[str, Any]:
    """As `Judges.protocol`, without training any."""
    if judged_by(data) == "pretrained":
        return of(data, getattr(data, "device", "cpu")).protocol(metric)
    return towers.protocol(data)


def judged_by(data: Any) -> str:
    """Whose judges a dataset asks for. Raises Inapplicable where it asks for none."""
    kind = getattr(data, "judged_by", None)
    if kind is None:
        raise Inapplicable("the dataset names no judges of its pictures, sounds and sentences")
    if kind not in ("trained", "pretrained"):
        raise ValueError(f"judged_by = {kind!r}: trained or pretrained")
    return kind
