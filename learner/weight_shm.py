"""The `shm` transport: all parameters in one shared-memory segment, which engines on this machine read."""

from __future__ import annotations

from collections.abc import Callable

from learner.weight_segment import WeightSegment
from learner.weight_source import WeightSource
from learner.weight_transport import SendStats, Settings, Transport, Update, WeightSyncClient
from shared.errors import WeightSyncError
from shared.weight_wire import FORMAT, PlainInit, to_plain


class ShmTransport(Transport):
    """Writes the segment anew for each version (`Transport`)."""

    point_to_point = True

    def __init__(self, client: WeightSyncClient, source: WeightSource, settings: Settings) -> None:
        """WeightSyncError when there is no room in shared memory."""
        self._client = client
        self._source = source
        self._segment: WeightSegment | None = WeightSegment(source.shapes, settings.dtype)

    def connect(self) -> None:
        """See `Transport.connect`."""
        self._client.init_weight_transfer_engine(to_plain(PlainInit(FORMAT, "shm")))

    def begin(self, version: int) -> Callable[[], SendStats]:
        """See `Transport.begin`: the segment keeps the weights."""
        segment = self._segment
        if segment is None:
            raise WeightSyncError("the weight sender is closed")
        update = Update(self._client, version)
        manifest = update.write(lambda: segment.write(self._source, version))

        def finish() -> SendStats:
            update.start()
            update.update(to_plain(manifest))
            self.sums = segment.sums()
            return update.finish(segment.nbytes)

        return finish

    def close(self) -> None:
        """Remove the segment."""
        if self._segment is not None:
            self._segment.close()
            self._segment = None
