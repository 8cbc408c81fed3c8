import weakref

from siamusic_fast.pipelines.dali.engine import DaliEngine
from siamusic_fast.pipelines.loaders import LoaderConfig, TwoViewLoader
from siamusic_fast.shards.manifest import ShardSet


def test_a_closed_loader_leaves_no_graph_for_a_forked_process_to_end(shard_set: ShardSet) -> None:
    loader = TwoViewLoader(shard_set, LoaderConfig(batch_size=4))
    next(iter(loader))
    assert isinstance(loader._engine, DaliEngine)
    graph = weakref.ref(loader._engine._pipeline)
    loader.close()
    assert graph() is None
