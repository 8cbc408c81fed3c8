"""From samples and operations to views, in torch, on the CPU or a GPU."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from siamusic_fast.pipelines.ops import FULL_SCALE, PITCH_GRID
from siamusic_fast.pipelines.plan import Batch, Plan, TrackPlan, View
from siamusic_fast.pipelines.prefetch import Computed, Ready
from siamusic_fast.pipelines.random_numbers import Array
from siamusic_fast.pipelines.reader import Reader
from siamusic_fast.pipelines.torch.features import LogMel, on_device
from siamusic_fast.pipelines.torch.images import changed_images
from siamusic_fast.pipelines.torch.waves import changed_waves


class TorchEngine:
    """Computes views: on the CPU in the threads that read, on a GPU whole batches where they are used.

    On the CPU, spectrograms are computed one by one, each of which stays in the cache; on a GPU, together.
    """

    def __init__(self, plan: Plan | TrackPlan, device: torch.device) -> None:
        self._mel = plan.frontend.mel
        self._device = device
        self._log_mel = LogMel(plan.frontend, plan.rate, device, max_pitch=plan.max_pitch)

    def begin(self, batch: Batch) -> list[Tensor]:
        """Return room for the views of `batch`; on a GPU, none yet."""
        return self.room(batch) if self._device.type == "cpu" else []

    def work(self, batch: Batch, pcm: Sequence[Array], rows: slice, begun: list[Tensor]) -> None:
        """On the CPU, compute the views of `rows`."""
        if self._device.type == "cpu":
            torch.set_num_threads(1)  # in this thread: those beside it do the same with other rows
            self.compute(batch, [torch.from_numpy(spans) for spans in pcm], rows, begun)

    def run(self, batches: Iterator[Ready]) -> Iterator[Computed]:
        """Yield the views of each of `batches`, on the device."""
        for ready in batches:
            yield Computed(ready, ready.begun, None) if self._device.type == "cpu" else self._on_gpu(ready)

    def room(self, batch: Batch) -> list[Tensor]:
        """Return tensors for the views of `batch`, float32 [rows, 1, n_mels, frames] each, on the device."""
        shape = (len(batch.spans[0].tracks), 1, self._mel.n_mels, self._mel.frames)
        return [torch.empty(shape, device=self._device) for _ in batch.views]

    def _on_gpu(self, ready: Ready) -> Computed:
        """Compute a whole batch on the stream of the thread that uses it."""
        with torch.cuda.device(self._device):
            views = self.room(ready.batch)
            pcm = [torch.from_numpy(spans).to(self._device, non_blocking=True) for spans in ready.pcm]
            event = torch.cuda.current_stream().record_event()
            self.compute(ready.batch, pcm, slice(0, len(views[0])), views)
        return Computed(ready, views, event)

    def compute(self, batch: Batch, pcm: Sequence[Tensor], rows: slice, out: Sequence[Tensor]) -> None:
        """Put the views of `rows`, whole blocks of `batch`, into those of `out`.

        `pcm` are the spans of the batch, int16 [rows, samples], on the device.
        """
        shared: dict[int, Tensor] = {}
        for view, into in zip(batch.views, out, strict=True):
            images = shared.get(view.span_index) if view.plain else None
            if images is None:
                images = self._images(pcm[view.span_index], view, rows)
            if view.plain:
                shared[view.span_index] = images
                images = images.clone() if view.image else images
            for op in view.image:
                images = changed_images(images, op, rows, self._mel)
            into[rows, 0] = images

    def _images(self, pcm: Tensor, view: View, rows: slice) -> Tensor:
        if self._device.type != "cpu":
            return self._spectrograms(pcm, view, rows)
        images = torch.empty(rows.stop - rows.start, self._mel.n_mels, self._mel.frames)
        for place, row in enumerate(range(rows.start, rows.stop)):
            images[place] = self._spectrograms(pcm, view, slice(row, row + 1))[0]
        return images

    def _spectrograms(self, pcm: Tensor, view: View, rows: slice) -> Tensor:
        """Return the log-mels of some rows of a view.

        With tempo r and pitch k, r times as many samples are taken and resampled to 1 / k of their number:
        the pitch is right, and frame j of the result lies at frame j r / k of the spectrogram.
        """
        wave = changed_waves(pcm, view, rows)
        if view.stretch is None or view.grid_pitch is None:
            return self._log_mel.plain(wave)
        ends = on_device(view.samples[rows], wave.device)[:, None]
        wave, ends = self._log_mel.at_rate(wave), self._log_mel.lengths_at_rate(ends)
        wave, ends = self._log_mel.shifted(wave, ends, view.grid_pitch[rows])
        stretch = on_device(view.stretch[rows].astype(np.float32), wave.device)[:, None]
        return self._log_mel.stretched(wave, ends, stretch)


def read_and_compute(batch: Batch, reader: Reader, engine: TorchEngine) -> tuple[list[Array], list[Tensor]]:
    """Return the spans of a batch and its views, computed at once on the CPU, for a few tracks."""
    rows = slice(0, len(batch.spans[0].tracks))
    pcm = [np.empty((rows.stop, spans.samples.max()), dtype=np.int16) for spans in batch.spans]
    for spans, into in zip(batch.spans, pcm, strict=True):
        reader.read(spans, rows, into)
    views = engine.room(batch)
    engine.compute(batch, [torch.from_numpy(spans) for spans in pcm], rows, views)
    return pcm, views


def final_waves(batch: Batch, pcm: Sequence[Array], view: int, plan: Plan) -> list[Array]:
    """Return the waves that the spectrograms of a view are computed from, float32 [samples], full scale 1.

    They have the final pitch and not yet the tempo, which `View.stretch` gives the spectrogram.
    """
    log_mel = LogMel(plan.frontend, plan.rate, torch.device("cpu"), max_pitch=plan.max_pitch)
    shown = batch.views[view]
    found = []
    for row in range(len(batch.tracks)):
        rows = slice(row, row + 1)
        wave = log_mel.at_rate(changed_waves(torch.from_numpy(pcm[shown.span_index]), shown, rows))
        pitch = np.full(1, PITCH_GRID) if shown.grid_pitch is None else shown.grid_pitch[rows]
        wave, _ = log_mel.shifted(wave, torch.tensor([[wave.shape[1]]]), pitch)
        found.append(wave[0].numpy() / FULL_SCALE)
    return found
