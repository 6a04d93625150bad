"""Images between page and model: uint8 pixels as base64, uploads, and anything fitted to a model's shape and levels."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from vlae.errors import VlaeError
from vlae.models.base import LatentVariableModel

Invert = Literal["auto", "no", "yes"]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM")  # Pillow reads more, of which some have a past of holes
MOST_PIXELS = 25_000_000  # of an upload: 100 MB once it is unpacked
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's


def to_page(x: Tensor) -> list[str]:
    """Images [N, C, H, W] in [0, 1] as the page takes them: base64 of uint8 [C, H, W] each."""
    pixels = (x.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu().contiguous().numpy()
    return [base64.b64encode(image.tobytes()).decode() for image in pixels]


def from_page(text: str, model: LatentVariableModel) -> Tensor:
    """The reverse of `to_page`, one image [1, C, H, W], at the model's nearest levels; exact for up to 256 levels.

    Raises:
        VlaeError: not base64, or of another size than the model's images.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise VlaeError("the image is not base64: expected the pixels as the page sends them") from None
    channels, height, width = model.image_shape
    if len(data) != channels * height * width:
        raise VlaeError(
            f"the image has {len(data)} bytes; this model's images are {channels}x{height}x{width}: choose one anew"
        )
    pixels = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(1, *model.image_shape)
    return at_levels(model.placed(pixels) / 255, model)


def at_levels(x: Tensor, model: LatentVariableModel) -> Tensor:
    """Images in [0, 1] at the nearest values that the likelihood gives mass to; binary ones are cut at 1/2."""
    levels = model.likelihood.levels
    return x if levels is None else (x * (levels - 1)).round() / (levels - 1)


def fit(x: Tensor, model: LatentVariableModel) -> Tensor:
    """Any images [N, C, h, w] in [0, 1], C 1 or 3, as images of the model: [N, *image_shape], at its levels."""
    channels, height, width = model.image_shape
    x = model.placed(x)
    if x.shape[1] == 3 and channels == 1:
        x = (x * x.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    elif x.shape[1] != channels:
        x = x.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    if tuple(x.shape[2:]) != (height, width):
        x = F.interpolate(x, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return at_levels(x.clamp(0, 1), model)


def read_upload(data: bytes, model: LatentVariableModel, invert: Invert = "auto") -> tuple[Tensor, str]:
    """An uploaded picture as an image of the model, [1, C, H, W], and in words what was done to it.

    Its middle of the model's proportions is taken, transparent parts are white. With "auto" a grey model's picture is
    inverted if its border is rather white: sets of digits and clothes have a black background.

    Raises:
        VlaeError: not a picture, of a format that is not read, damaged, or of too many pixels.
    """
    if invert not in get_args(Invert):
        raise VlaeError(f"invert must be one of {', '.join(get_args(Invert))}; got {invert!r}")
    picture = _opened(data)
    channels, height, width = model.image_shape
    given = f"{picture.format or 'a picture'} of {picture.width}x{picture.height}"  # what is made of it has no format
    done = []
    side = min(picture.width / width, picture.height / height)
    middle = max(1, round(side * width)), max(1, round(side * height))
    if middle != picture.size:
        picture = ImageOps.fit(picture, middle, Image.Resampling.BOX)
        done.append(f"its middle {middle[0]}x{middle[1]}")
    x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
    if bool((x == x[:, :1]).all()):
        x = x[:, :1]
    elif channels == 1:
        done.append("grey")
    if invert == "yes" or (invert == "auto" and channels == 1 and _white_border(x)):
        x = 1 - x
        done.append("inverted" if invert == "yes" else "inverted, since its background is white")
    if tuple(x.shape[2:]) != (height, width):
        done.append(f"resized to {width}x{height}")
    if model.likelihood.levels == 2:
        done.append("black and white")
    return fit(x, model), "; ".join([given, *done])


def _opened(data: bytes) -> Image.Image:
    """The first frame of a picture, RGB, upright."""
    readable = f"expected a picture ({', '.join(FORMATS)})"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is stricter
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
        kind = picture.format
        if picture.width * picture.height > MOST_PIXELS:
            raise VlaeError(
                f"the picture has {picture.width}x{picture.height} pixels; at most {MOST_PIXELS // 10**6} million: "
                "make it smaller"
            )
        if picture.mode.startswith(("I", "F")):
            raise VlaeError(f"the picture has more than 8 bits per value ({picture.mode}): save it with 8")
        upright = ImageOps.exif_transpose(picture).convert("RGBA")
    except VlaeError:
        raise
    except Image.DecompressionBombError:  # Pillow's own limit, several times as high
        raise VlaeError(f"the picture has more pixels than {MOST_PIXELS // 10**6} million: make it smaller") from None
    except Exception as error:  # decoders raise almost anything on broken bytes
        reason = "" if isinstance(error, Image.UnidentifiedImageError) else f" ({type(error).__name__})"
        raise VlaeError(f"the file is not a readable picture{reason}: {readable}") from None
    paper = Image.new("RGBA", upright.size, "white")
    result = Image.alpha_composite(paper, upright).convert("RGB")
    result.format = kind
    return result


def _white_border(x: Tensor) -> bool:
    """Whether most of the outermost pixels of one image [1, C, h, w] are brighter than half."""
    grey = x[0].mean(0)
    border = torch.cat([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    return bool(border.median() > 0.5)
