"""Many small images on one page."""

from io import BytesIO

import numpy as np
from PIL import Image

from ..files import write_atomically


def write_sheet(images: np.ndarray, columns: int, path: str, zoom: int = 2) -> None:
    """Write images (n, 3, H, W) uint8 as one PNG; n is a multiple of `columns`, and a pixel becomes zoom x zoom ones.

    The PNG has 256 colours chosen for the sheet. A sheet of noisy pictures then takes a quarter of a megabyte.
    """
    n, _, height, width = images.shape
    page = images.reshape(n // columns, columns, 3, height, width).transpose(0, 3, 1, 4, 2)
    picture = Image.fromarray(page.reshape(n // columns * height, columns * width, 3))
    content = BytesIO()
    picture = picture.quantize(256, dither=Image.Dither.NONE)
    picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST).save(content, "PNG")
    write_atomically(path, content.getvalue())
