"""Tiny-ImageNet-C's families, image by image, as its generator has them: with OpenCV, SciPy, scikit-image and Pillow.

Each takes an image, float (height, width, 3) in [0, 1], and what the benchmark's table says of a level.
"""

import io
import math
from typing import Any

import cv2
import numpy as np
import skimage.color
import skimage.filters
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import zoom as scipy_zoom

Picture = NDArray[Any]
DISK_EDGES = {0.5: 0.6, 1: 0.1, 1.5: 0.1, 2.5: 0.01, 3: 0.1}
SATURATION_ADDED = {0.3: 0.0, 0.1: 0.0, 2: 0.0, 5: 0.1, 30: 0.2}
MOTION_RADII = {1: 10, 1.5: 10, 2: 10, 2.5: 10, 3: 12}
FOG_DECAYS = {0.4: 3, 0.7: 3, 1: 2.5, 1.5: 2, 2: 1.75}


def gaussian_blur(image: Picture, sigma: float) -> Picture:
    return np.clip(skimage.filters.gaussian(image, sigma=sigma, channel_axis=-1), 0, 1)


def defocus_blur(image: Picture, radius: float) -> Picture:
    offsets = np.arange(-8, 9)
    x, y = np.meshgrid(offsets, offsets)
    disk = np.array(x**2 + y**2 <= radius**2, dtype=np.float32)
    disk = cv2.GaussianBlur(disk / disk.sum(), ksize=(3, 3), sigmaX=DISK_EDGES[radius])
    return np.clip(np.stack([cv2.filter2D(image[..., channel], -1, disk) for channel in range(3)], -1), 0, 1)


def motion_blur(image: Picture, sigma: float, angle: float) -> Picture:
    width = 2 * MOTION_RADII[sigma] + 1
    kernel = np.exp(-(np.arange(width) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    bordered = np.pad(image, ((width, width), (width, width), (0, 0)), mode="edge")
    height, breadth = image.shape[:2]
    blurred = np.zeros_like(image)
    for step in range(width):
        down = -math.ceil(step * math.sin(math.radians(angle)) - 0.5)
        across = -math.ceil(step * math.cos(math.radians(angle)) - 0.5)
        top, left = width - down, width - across
        blurred += kernel[step] * bordered[top : top + height, left : left + breadth]
    return np.clip(blurred, 0, 1)


def zoom_blur(image: Picture, largest: float) -> Picture:
    zooms = 1 + 0.01 * np.arange(round((largest - 1) / 0.01) + 1)
    size = image.shape[0]
    total = np.zeros_like(image)
    for zoom in zooms:
        part = math.ceil(size / zoom)
        top = (size - part) // 2
        zoomed = scipy_zoom(image[top : top + part, top : top + part], (zoom, zoom, 1), order=1)
        trim = (zoomed.shape[0] - size) // 2
        total += zoomed[trim : trim + size, trim : trim + size]
    return np.clip((image + total) / (len(zooms) + 1), 0, 1)


def brightness(image: Picture, added: float) -> Picture:
    hsv = skimage.color.rgb2hsv(image)
    hsv[..., 2] = np.clip(hsv[..., 2] + added, 0, 1)
    return np.clip(skimage.color.hsv2rgb(hsv), 0, 1)


def contrast(image: Picture, factor: float) -> Picture:
    means = image.mean(axis=(0, 1), keepdims=True)
    return np.clip((image - means) * factor + means, 0, 1)


def saturate(image: Picture, factor: float) -> Picture:
    hsv = skimage.color.rgb2hsv(image)
    hsv[..., 1] = np.clip(hsv[..., 1] * factor + SATURATION_ADDED[factor], 0, 1)
    return np.clip(skimage.color.hsv2rgb(hsv), 0, 1)


def pixelate(image: Picture, share: float) -> Picture:
    picture = Image.fromarray(np.uint8(np.round(image * 255)))
    width, height = picture.size
    few = picture.resize((int(width * share), int(height * share)), Image.Resampling.BOX)
    return np.asarray(few.resize((width, height), Image.Resampling.BOX)) / 255


def jpeg(image: Picture, quality: float) -> Picture:
    stream = io.BytesIO()
    Image.fromarray(np.uint8(np.round(image * 255))).save(stream, "JPEG", quality=int(quality))
    return np.asarray(Image.open(stream)) / 255


def shot_noise(image: Picture, photons: float, random: np.random.Generator) -> Picture:
    return np.clip(random.poisson(image * photons) / photons, 0, 1)


def impulse_noise(image: Picture, amount: float, random: np.random.Generator) -> Picture:
    changed, salt = random.random(image.shape) < amount, random.random(image.shape) < 0.5
    return np.where(changed, salt.astype(float), image)


def speckle_noise(image: Picture, sigma: float, random: np.random.Generator) -> Picture:
    return np.clip(image + image * random.normal(size=image.shape, scale=sigma), 0, 1)


def gaussian_noise(image: Picture, sigma: float, random: np.random.Generator) -> Picture:
    return np.clip(image + random.normal(size=image.shape, scale=sigma), 0, 1)


def fog(image: Picture, strength: float, random: np.random.Generator) -> Picture:
    size = 1 << (max(image.shape[:2]) - 1).bit_length()
    cloud = plasma_fractal(size, FOG_DECAYS[strength], random)[: image.shape[0], : image.shape[1], None]
    brightest = image.max()
    return np.clip((image + strength * cloud) * brightest / (brightest + strength), 0, 1)


def plasma_fractal(size: int, decay: float, random: np.random.Generator) -> Picture:
    """By squares and diamonds, point by point."""
    heights = np.zeros((size, size))
    step, roughness = size, 100.0
    while step >= 2:
        half = step // 2

        def mean(points: list[tuple[int, int]]) -> float:
            around = sum(heights[row % size, column % size] for row, column in points) / 4
            return around + roughness * random.uniform(-roughness, roughness)  # noqa: B023

        corners = [(row, column) for row in range(0, size, step) for column in range(0, size, step)]
        for row, column in corners:
            around = [(row, column), (row + step, column), (row, column + step), (row + step, column + step)]
            heights[row + half, column + half] = mean(around)
        for row, column in corners:
            over, beside = (row + half, column + half), (row - half, column + half)
            heights[row, column + half] = mean([over, beside, (row, column), (row, column + step)])
            left = (row + half, column - half)
            heights[row + half, column] = mean([over, left, (row, column), (row + step, column)])
        step, roughness = half, roughness / decay
    heights -= heights.min()
    return heights / heights.max()
