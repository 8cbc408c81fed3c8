"""The layers between an encoder and the loss of a method, with the sizes of the method's paper."""

from torch import nn

_BYOL_HIDDEN_DIM = 4096


def projector(method: str, dim: int, width: int) -> nn.Sequential:
    """Return the layers from features [B, `dim`] to what the loss of `method` sees, [B, `width`].

    - simsiam: `dim` -> `dim` -> `dim` -> `width`; the last batch norm has no weights.
    - simclr: `dim` -> `dim` -> `width`, without batch norm.
    - vicreg: `dim` -> `width` -> `width` -> `width`.
    - byol: `dim` -> 4,096 -> `width`.
    """
    if method == "simclr":
        return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(inplace=True), nn.Linear(dim, width))
    if method == "vicreg":
        return nn.Sequential(*_hidden(dim, width), *_hidden(width, width), nn.Linear(width, width))
    if method == "byol":
        return nn.Sequential(*_hidden(dim, _BYOL_HIDDEN_DIM), nn.Linear(_BYOL_HIDDEN_DIM, width))
    last = nn.Linear(dim, width, bias=False), nn.BatchNorm1d(width, affine=False)
    return nn.Sequential(*_hidden(dim, dim), *_hidden(dim, dim), *last)


def predictor(method: str, width: int) -> nn.Sequential:
    """Return two layers from `width` to `width`, with a bottleneck between them in simsiam.

    The hidden layer has a quarter of the width in simsiam (Chen & He 2021), 4,096 in byol.
    """
    hidden_dim = _BYOL_HIDDEN_DIM if method == "byol" else max(1, width // 4)
    return nn.Sequential(*_hidden(width, hidden_dim), nn.Linear(hidden_dim, width))


def _hidden(dim: int, width: int) -> tuple[nn.Module, ...]:
    return nn.Linear(dim, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True)
