"""What siamusic-fast promises about faults: the test behind each promise, and where the docs make it."""

from dataclasses import dataclass

_HERE = "tests/faults"


@dataclass(frozen=True, kw_only=True)
class Promise:
    """One promise."""

    name: str
    """Key of its row in the results."""
    topic: str
    """Key of `TOPICS`."""
    words: str
    """The promise in a sentence."""
    test: str
    """Path and name of the test; each of its parameters is a case."""
    said: tuple[str, ...] = ()
    """Pages and words in them that make the promise, such as `README.md: never end a run`."""
    tries: int = 1
    """How often each case is tried in the long form; 1 where the case decides that."""
    short: int = 1
    """How often each case is tried by `make test`."""
    seconds: float
    """About how long a try takes on two slow cores."""

    def count(self, share: float) -> int:
        """Return how often each case is tried in so large a share of the long form."""
        return max(self.short, round(share * self.tries))


TOPICS = {
    "packing": "Packing",
    "reading": "Reading what was packed",
    "training": "Training",
    "processes": "Processes, signals, environments and what is left",
}

PROMISES = (
    Promise(
        name="pack killed",
        topic="packing",
        words="Packing that is killed at a random moment, alone or with its workers, goes on with the same "
        "command and ends with the same bytes.",
        test=f"{_HERE}/test_packing.py::test_a_pack_killed_at_random_moments_resumes_to_identical_bytes",
        said=("README.md: Packing that was stopped, even by `kill -9` or a full disk, goes on",),
        tries=50,
        short=2,
        seconds=2.5,
    ),
    Promise(
        name="pack worker killed",
        topic="packing",
        words="Packing of which a worker is killed at a random moment goes on by itself and ends with "
        "the same bytes.",
        test=f"{_HERE}/test_packing.py::test_a_pack_whose_worker_is_killed_goes_on_to_identical_bytes",
        said=("docs/shards.md: A worker process that dies (killed for lack of memory) is replaced",),
        tries=20,
        short=1,
        seconds=3,
    ),
    Promise(
        name="pack stopped at each operation",
        topic="packing",
        words="So does packing that is killed, or finds the disk full, at any of its operations on files.",
        test=f"{_HERE}/test_packing.py::"
        "test_a_pack_stopped_at_any_operation_on_files_resumes_to_identical_bytes",
        said=("docs/shards.md: A run that is stopped by Ctrl-C, kill or a full disk is resumed by the same",),
        seconds=12,
    ),
    Promise(
        name="pack told to stop",
        topic="packing",
        words="SIGTERM and SIGHUP, to the program or its group, end packing, and the same command goes on.",
        test=f"{_HERE}/test_packing.py::test_a_pack_told_to_stop_ends_and_resumes_to_identical_bytes",
        tries=10,
        short=1,
        seconds=2.5,
    ),
    Promise(
        name="pack on a full disk",
        topic="packing",
        words="A disk that is full, after any part of the bytes, ends packing with one line; with more room "
        "the same command goes on.",
        test=f"{_HERE}/test_packing.py::"
        "test_a_pack_on_a_full_disk_ends_with_one_line_and_goes_on_when_there_is_room",
        tries=20,
        short=1,
        seconds=3,
    ),
    Promise(
        name="damaged audio",
        topic="packing",
        words="A damaged audio file never ends packing: it is packed, or listed with a reason, and what is "
        "packed is what loaders read.",
        test="tests/shards/test_fuzz.py::"
        "test_damaged_inputs_are_all_accounted_for_and_what_is_packed_is_what_loaders_read",
        said=(
            "README.md: Files that cannot be used never end a run",
            "docs/shards.md: A bad file never stops a run",
        ),
        seconds=30,
    ),
    Promise(
        name="audio goes away",
        topic="packing",
        words="Audio that goes away or changes meanwhile ends packing, which goes on when it is back.",
        test="tests/shards/test_resume.py::test_audio_that_goes_away_ends_the_run_which_then_goes_on",
        said=("docs/shards.md: If the audio goes away during the run",),
        seconds=1,
    ),
    Promise(
        name="cluster worker killed",
        topic="packing",
        words="On a Dask cluster, a worker that is killed costs time alone: the bytes are those of a local "
        "run.",
        test="tests/cluster/test_packing.py::test_bytes_are_those_of_a_local_run_even_if_a_worker_is_killed",
        said=("docs/shards.md: A worker that is killed costs time",),
        seconds=6,
    ),
    Promise(
        name="cluster command killed",
        topic="packing",
        words="A command that is killed at a random moment while it packs on a cluster is ended on this "
        "machine, with the same bytes.",
        test=f"{_HERE}/test_cluster.py::test_a_command_killed_on_a_cluster_is_ended_here_to_identical_bytes",
        said=("docs/shards.md: What was begun here may be ended on a cluster, and the other way",),
        tries=4,
        short=1,
        seconds=20,
    ),
    Promise(
        name="change of engines",
        topic="packing",
        words="Packing that was begun on this machine is ended on a cluster, and the other way, with the "
        "same bytes.",
        test="tests/cluster/test_packing.py::test_what_one_engine_began_the_other_ends",
        said=("docs/shards.md: What was begun here may be ended on a cluster, and the other way",),
        seconds=3,
    ),
    Promise(
        name="cluster without the files",
        topic="packing",
        words="A worker of a cluster that does not see the audio, or the folder of the shards, ends "
        "packing with one line that names it.",
        test="tests/cluster/test_packing.py::test_a_worker_that_does_not_see_the_files_is_named",
        said=("docs/shards.md: the command ends with one line that names host and path",),
        seconds=1,
    ),
    Promise(
        name="scheduler wrong",
        topic="packing",
        words="A scheduler that does not answer, or an address that is none, is one line, and never waited "
        "for without end.",
        test="tests/cluster/test_schedulers.py::test_a_scheduler_that_cannot_be_used_is_one_line",
        seconds=0.3,
    ),
    Promise(
        name="scheduler goes away",
        topic="packing",
        words="A scheduler that is killed, or hangs, ends packing with one line, and another engine goes "
        "on to the same bytes.",
        test="tests/cluster/test_schedulers.py::"
        "test_a_scheduler_that_goes_away_ends_the_work_with_one_line_and_another_engine_goes_on",
        seconds=15,
    ),
    Promise(
        name="deadly file",
        topic="packing",
        words="A file at which a worker dies is left out, with its name, if a process that decodes it "
        "alone dies as well.",
        test="tests/shards/test_resume.py::"
        "test_a_file_at_which_a_worker_was_killed_is_left_out_if_one_that_decodes_it_alone_dies_too",
        said=("docs/shards.md: dies as well, the file is left out",),
        seconds=3,
    ),
    Promise(
        name="other inputs",
        topic="packing",
        words="Packing that is to go on with other options stops, and says which differ.",
        test="tests/shards/test_resume.py::test_other_options_are_refused_and_named_and_force_starts_over",
        said=("docs/shards.md: the command says so and stops",),
        seconds=0.5,
    ),
    Promise(
        name="damage within a file",
        topic="packing",
        words="Damage within an audio file costs what is damaged, and leaves a mark.",
        test="tests/audio/test_odd_files.py::test_damage_costs_what_is_damaged_and_leaves_a_mark",
        said=("docs/shards.md: An error costs the packet that it is in, not the rest",),
        seconds=0.1,
    ),
    Promise(
        name="damaged Parquet",
        topic="packing",
        words="A damaged Parquet file is an error that names it.",
        test="tests/audio/test_parquet.py::test_audio_that_is_damaged_in_the_file_is_an_error_that_names_it",
        said=("docs/shards.md: A file that is damaged or cut off is an error that names it",),
        seconds=0.2,
    ),
    Promise(
        name="download breaks",
        topic="packing",
        words="A download whose connection breaks goes on where it broke.",
        test="tests/audio/test_fma_download.py::test_a_dropped_connection_is_resumed_where_it_broke",
        said=("docs/shards.md: the download goes on from there by itself",),
        seconds=0.5,
    ),
    Promise(
        name="download differs",
        topic="packing",
        words="What was downloaded gets its name only if its SHA-1 is right.",
        test="tests/audio/test_fma_download.py::test_wrong_bytes_never_get_the_name_of_the_zip",
        said=("docs/shards.md: The file gets its final name when its SHA-1 is the one",),
        seconds=0.5,
    ),
    Promise(
        name="two packers",
        topic="packing",
        words="Of two packers in one folder, the second is refused.",
        test="tests/shards/test_pack.py::test_a_second_packer_on_the_same_folder_is_refused",
        seconds=1,
    ),
    Promise(
        name="lost manifest",
        topic="packing",
        words="A shard set without a sound manifest is recognized, and replaced with --force alone.",
        test="tests/shards/test_verify.py::test_a_shard_set_without_a_sound_manifest_is_replaced_by_force_alone",
        said=("docs/shards.md: is lost or damaged, the shard set is still recognized",),
        seconds=1,
    ),
    Promise(
        name="files of others",
        topic="packing",
        words="Files that no packing made are not changed, not even with --force.",
        test="tests/shards/test_resume.py::test_a_folder_of_that_name_which_no_packer_made_is_not_touched",
        said=("docs/shards.md: belong to a shard set are never changed",),
        seconds=0.2,
    ),
    Promise(
        name="upload stopped",
        topic="packing",
        words="Packing into object storage that was stopped goes on with the same command, from another "
        "machine too, and ends with the same bytes.",
        test="tests/storage/test_packing.py::test_a_stopped_packing_goes_on_from_what_is_in_the_bucket",
        said=("docs/scaling.md: goes on with the same command from what is in",),
        seconds=4,
    ),
    Promise(
        name="storage fails while packing",
        topic="packing",
        words="Object storage that fails while it is packed into ends packing with one line, and the same "
        "command goes on.",
        test="tests/storage/test_packing.py::"
        "test_storage_that_fails_while_packing_ends_it_and_the_same_command_goes_on",
        said=("docs/scaling.md: after that ends packing with one line",),
        seconds=4,
    ),
    Promise(
        name="objects of others",
        topic="packing",
        words="Objects that no packing made are not changed, not even with --force.",
        test="tests/storage/test_packing.py::test_files_of_others_are_never_touched",
        said=("docs/scaling.md: objects that no packer wrote are never touched",),
        seconds=1,
    ),
    Promise(
        name="upload spoilt",
        topic="packing",
        words="An object that is not what was uploaded is noticed before the shard counts as finished.",
        test="tests/storage/test_remote.py::test_an_upload_that_something_else_overwrites_is_noticed",
        said=("docs/scaling.md: uploaded whole, read again, compared",),
        seconds=1,
    ),
    Promise(
        name="verify flips",
        topic="reading",
        words="`verify` finds any flipped bit in any file of a shard set.",
        test=f"{_HERE}/test_damage.py::test_verify_finds_every_flipped_bit",
        said=("README.md: every byte against the manifest",),
        tries=1000,
        short=60,
        seconds=0.03,
    ),
    Promise(
        name="verify cuts",
        topic="reading",
        words="`verify` finds any file of a shard set that was cut off.",
        test=f"{_HERE}/test_damage.py::test_verify_finds_every_cut",
        said=("docs/shards.md: changed bit is found wherever it is",),
        tries=200,
        short=20,
        seconds=0.03,
    ),
    Promise(
        name="loader of damaged shards",
        topic="reading",
        words="A loader over files with a flipped bit or a cut says what is damaged, or gives the same "
        "batches and labels; where samples of audio are damaged, that track alone differs.",
        test=f"{_HERE}/test_damage.py::"
        "test_a_loader_of_damaged_shards_says_so_or_differs_in_the_damaged_track_alone",
        said=("docs/shards.md: A loader compares each index with its SHA-256",),
        tries=200,
        short=8,
        seconds=0.3,
    ),
    Promise(
        name="damaged features",
        topic="reading",
        words="Damaged means and standard deviations are named and measured again.",
        test="tests/pipelines/test_frontend.py::test_a_damaged_file_is_named_and_measured_again",
        said=("docs/shards.md: If it is damaged, loaders say so and measure again",),
        seconds=0.5,
    ),
    Promise(
        name="manifest that leads outside",
        topic="reading",
        words="A manifest that names files outside of its folder is refused before anything is read.",
        test="tests/shards/test_verify.py::test_a_manifest_that_leads_outside_is_refused_before_anything_is_read",
        seconds=0.1,
    ),
    Promise(
        name="tar goes away",
        topic="reading",
        words="A tar that is cut off or goes away while a loader reads it is named.",
        test="tests/pipelines/test_reader.py::"
        "test_a_tar_cut_off_or_removed_after_the_loader_was_made_is_named",
        said=("docs/architecture.md: A short read, a label that differs or audio that does not decode",),
        seconds=0.5,
    ),
    Promise(
        name="label that differs",
        topic="reading",
        words="A label that is not that of the table is named with its track.",
        test="tests/pipelines/test_reader.py::"
        "test_a_label_that_is_not_that_of_the_table_is_named_with_its_sample",
        seconds=0.5,
    ),
    Promise(
        name="compressed audio that does not decode",
        topic="reading",
        words="Compressed audio that a loader cannot decode is named with its track.",
        test="tests/pipelines/test_reader.py::test_a_flac_that_cannot_be_decoded_is_named_with_its_sample",
        seconds=0.5,
    ),
    Promise(
        name="fuzzed index",
        topic="reading",
        words="Any index is read or refused with one clear error.",
        test=f"{_HERE}/test_parsers.py::test_any_index_is_read_or_refused",
        tries=2000,
        short=30,
        seconds=0.005,
    ),
    Promise(
        name="fuzzed manifest",
        topic="reading",
        words="Any manifest is read or refused with one clear error.",
        test=f"{_HERE}/test_parsers.py::test_any_manifest_is_read_or_refused",
        said=("docs/shards.md: A manifest that names files outside its folder, or whose values cannot",),
        tries=2000,
        short=30,
        seconds=0.01,
    ),
    Promise(
        name="fuzzed tables",
        topic="reading",
        words="Any tracks.csv and rejected.csv are read or refused with one clear error.",
        test=f"{_HERE}/test_parsers.py::test_any_tables_are_read_or_refused",
        tries=2000,
        short=30,
        seconds=0.01,
    ),
    Promise(
        name="fuzzed recipes",
        topic="reading",
        words="Any text for --aug is a recipe or refused with one clear error.",
        test=f"{_HERE}/test_parsers.py::test_any_recipe_is_read_or_refused",
        tries=2000,
        short=30,
        seconds=0.003,
    ),
    Promise(
        name="fuzzed settings",
        topic="reading",
        words="Any file for --config is read or refused with one clear error.",
        test=f"{_HERE}/test_parsers.py::test_any_file_of_settings_is_read_or_refused",
        tries=2000,
        short=30,
        seconds=0.02,
    ),
    Promise(
        name="no sane file",
        topic="reading",
        words="A FIFO, a device, a huge file or a folder in the place of a table, a file of labels or "
        "settings, a shard or a checkpoint is refused in one line, and never waited for.",
        test=f"{_HERE}/test_processes.py::"
        "test_what_is_no_sane_file_is_refused_in_one_line_and_not_waited_for",
        seconds=2,
    ),
    Promise(
        name="embedding stopped",
        topic="reading",
        words="`embed` that was stopped goes on and ends with the same bytes.",
        test="tests/inference/test_embed.py::test_a_stopped_call_goes_on_and_ends_with_the_same_bytes",
        said=("docs/using.md: a call that was stopped, even by `kill -9`, goes on",),
        seconds=3,
    ),
    Promise(
        name="embedding on a cluster",
        topic="reading",
        words="`embed` on a cluster of which a worker is killed, or that was begun by another engine, ends "
        "with the bytes of a local run.",
        test="tests/cluster/test_embedding.py::"
        "test_a_killed_worker_and_a_change_of_engines_leave_the_bytes_of_a_local_run",
        said=("docs/using.md: on the workers of a Dask cluster",),
        seconds=15,
    ),
    Promise(
        name="soak",
        topic="reading",
        words="A loader that goes on takes no more memory, open files and threads: they stay as they are "
        "in the second half of its batches.",
        test=f"{_HERE}/test_soak.py::test_memory_files_and_threads_stay_as_they_are",
        tries=500_000,
        short=2_000,
        seconds=0.0006,
    ),
    Promise(
        name="verify in a bucket",
        topic="reading",
        words="`verify` names what is changed, missing or too much in a bucket.",
        test="tests/storage/test_packing.py::test_verify_names_what_is_wrong_in_the_bucket",
        seconds=3,
    ),
    Promise(
        name="credentials",
        topic="reading",
        words="Missing and wrong credentials are one clear error each.",
        test="tests/storage/test_remote.py::"
        "test_missing_and_wrong_credentials_are_told_apart_from_missing_data",
        seconds=2,
    ),
    Promise(
        name="missing bucket",
        topic="reading",
        words="A bucket that does not exist is named.",
        test="tests/storage/test_remote.py::test_a_missing_bucket_is_named",
        seconds=1,
    ),
    Promise(
        name="storage unreachable",
        topic="reading",
        words="An endpoint that does not answer is given up with one clear error.",
        test="tests/storage/test_remote.py::test_an_endpoint_that_does_not_answer_is_given_up",
        said=("docs/scaling.md: or 60 s for bytes is given up",),
        seconds=4,
    ),
    Promise(
        name="connection cut",
        topic="reading",
        words="Connections that are cut while shards are fetched change no batch.",
        test="tests/storage/test_loading.py::test_connections_that_are_cut_while_training_change_no_batch",
        said=("docs/scaling.md: A connection that is cut costs at most 8 MiB",),
        seconds=3,
    ),
    Promise(
        name="object corrupted",
        topic="reading",
        words="A shard in object storage that is not what was packed is an error that names it, and never "
        "gets a name in the cache.",
        test="tests/storage/test_cache.py::test_a_corrupted_object_is_an_error_and_never_gets_a_name",
        said=("docs/scaling.md: which is compared with the manifest before it gets that name",),
        seconds=1,
    ),
    Promise(
        name="object corrupted while loading",
        topic="reading",
        words="So is one that is changed or removed after the loader was made.",
        test="tests/storage/test_loading.py::"
        "test_a_shard_that_is_spoilt_after_it_was_opened_ends_loading_with_its_name",
        said=("docs/scaling.md: changed or damaged object ends it too, with its name",),
        seconds=1,
    ),
    Promise(
        name="cache on a full disk",
        topic="reading",
        words="A full disk costs the oldest shards in the cache, and is an error only if one shard does not"
        " fit.",
        test="tests/storage/test_cache.py::test_a_full_disk_costs_what_is_oldest_and_only_then_is_an_error",
        said=("docs/scaling.md: A disk that is full costs the oldest tars",),
        seconds=1,
    ),
    Promise(
        name="eviction while reading",
        topic="reading",
        words="Shards that make room while others are read change no batch.",
        test="tests/storage/test_loading.py::"
        "test_shards_that_make_room_while_others_are_read_change_no_batch",
        said=("docs/scaling.md: A tar that makes room while it is read stays readable",),
        seconds=3,
    ),
    Promise(
        name="cache emptied",
        topic="reading",
        words="Neither do shards that somebody removes from the cache.",
        test="tests/storage/test_loading.py::"
        "test_a_shard_that_somebody_removes_from_the_cache_is_fetched_again",
        said=("docs/scaling.md: one that is gone before it is opened is fetched again",),
        seconds=2,
    ),
    Promise(
        name="cache shared",
        topic="reading",
        words="Processes that want one shard at the same time fetch it once.",
        test="tests/storage/test_cache.py::test_two_processes_share_what_one_fetches",
        said=("docs/scaling.md: one fetches a tar, the others wait for it",),
        seconds=3,
    ),
    Promise(
        name="killed while fetching",
        topic="reading",
        words="A process that is killed while it fetches holds up nobody, and what it left is used or makes"
        " room.",
        test="tests/storage/test_cache.py::test_after_a_kill_while_fetching_others_go_on",
        said=("docs/scaling.md: A process that is killed holds up",),
        seconds=3,
    ),
    Promise(
        name="training killed",
        topic="training",
        words="Training that is killed at a random moment, as a whole, its launcher alone or one of its "
        "processes, goes on from its last checkpoint to the same bits.",
        test=f"{_HERE}/test_training.py::test_a_training_killed_at_random_moments_goes_on_to_the_same_bits",
        said=(
            "README.md: of a run that was never stopped",
            "docs/training.md: A run that was killed goes on from its last",
        ),
        tries=5,
        short=1,
        seconds=15,
    ),
    Promise(
        name="training killed, as typed",
        topic="training",
        words="So does `siamusic-fast pretrain` as it is typed, with ResNet-18.",
        test="tests/cli/test_pretrain.py::"
        "test_a_real_process_that_is_killed_and_resumed_ends_with_the_same_bits",
        seconds=40,
    ),
    Promise(
        name="training told to stop",
        topic="training",
        words="After SIGTERM or SIGHUP, to one process or to the group, training saves, ends with the exit "
        "code of the signal, and goes on to the same bits.",
        test=f"{_HERE}/test_training.py::test_a_training_told_to_stop_saves_and_goes_on_to_the_same_bits",
        said=("README.md: Ctrl-C and SIGTERM save a", "docs/training.md: After Ctrl-C, SIGTERM or SIGHUP"),
        tries=4,
        short=1,
        seconds=12,
    ),
    Promise(
        name="fine-tuning stopped",
        topic="training",
        words="Fine-tuning that was stopped goes on to the same bits.",
        test="tests/training/test_finetune.py::test_a_fine_tuning_that_was_stopped_goes_on_to_the_same_bits",
        said=("docs/training.md: the classifier and the log in the end are those of a run that was never",),
        seconds=5,
    ),
    Promise(
        name="Ctrl-C twice",
        topic="training",
        words="A second Ctrl-C stops at once, unless it is an echo of the first.",
        test="tests/processes/test_signals.py::test_a_second_ctrl_c_stops_at_once_unless_it_is_an_echo_of_the_first",
        said=("docs/training.md: A second Ctrl-C ends the run at once",),
        seconds=0.1,
    ),
    Promise(
        name="SIGTERM twice",
        topic="training",
        words="A SIGTERM that the system repeats breaks no save.",
        test="tests/processes/test_signals.py::test_what_the_system_repeats_breaks_no_save",
        said=("docs/training.md: A second SIGTERM does not",),
        seconds=0.1,
    ),
    Promise(
        name="other number of processes",
        topic="training",
        words="A run that was stopped goes on in more or fewer processes with the same tracks, crops and "
        "augmentations in every step, and with batch norm over all of them to the same weights but for "
        "rounding.",
        test="tests/training/test_other_processes.py::"
        "test_in_other_processes_every_step_has_the_same_tracks_and_with_one_batch_norm_the_same_weights",
        said=("docs/training.md: A run may go on in more or fewer processes",),
        seconds=15,
    ),
    Promise(
        name="stopped within a step",
        topic="training",
        words="A run that is told to stop at any of its steps saves within that step.",
        test="tests/training/test_pretrain.py::"
        "test_a_run_told_to_stop_saves_within_a_step_and_ends_with_the_same_bits",
        said=("README.md: pre-training run within a step",),
        seconds=2,
    ),
    Promise(
        name="checkpoint killed",
        topic="training",
        words="A kill at any step of a save leaves a whole checkpoint from which the run goes on.",
        test="tests/models/test_checkpoint.py::test_a_kill_at_any_step_of_a_save_leaves_a_run_that_goes_on",
        said=("docs/architecture.md: A kill at any moment leaves a whole checkpoint under one of the two",),
        seconds=2,
    ),
    Promise(
        name="checkpoint damaged",
        topic="training",
        words="No checkpoint with a flipped bit or a cut is loaded.",
        test=f"{_HERE}/test_damage.py::test_no_flipped_bit_and_no_cut_of_a_real_checkpoint_is_loaded",
        said=("docs/architecture.md: a single flipped bit is one error",),
        tries=200,
        short=5,
        seconds=0.15,
    ),
    Promise(
        name="checkpoint before the damaged one",
        topic="training",
        words="If the last checkpoint is damaged, the run goes on from the one before to the same bits.",
        test="tests/training/test_pretrain.py::"
        "test_a_run_whose_last_checkpoint_is_damaged_goes_on_from_the_one_before_to_the_same_bits",
        said=("docs/training.md: is damaged, the run goes on from the one before with a warning",),
        seconds=3,
    ),
    Promise(
        name="damaged checkpoint elsewhere",
        topic="training",
        words="Commands other than pretrain do not take an older checkpoint by themselves, and say how to.",
        test="tests/models/test_checkpoint.py::test_others_do_not_take_an_older_checkpoint_and_say_how_to_go_back_to_it",
        said=("docs/training.md: damaged one and the command that restores the one before",),
        seconds=0.5,
    ),
    Promise(
        name="damaged export",
        topic="training",
        words="A damaged file of weights that was exported is refused.",
        test="tests/inference/test_export.py::test_pretraining_starts_from_an_exported_file_and_not_from_a_damaged_one",
        seconds=3,
    ),
    Promise(
        name="code in a checkpoint",
        topic="training",
        words="No checkpoint runs code when it is loaded.",
        test="tests/models/test_checkpoint.py::test_loading_runs_no_code_that_a_file_brings",
        said=("docs/architecture.md: hold tensors and plain values only and are loaded with",),
        seconds=0.1,
    ),
    Promise(
        name="full disk while training",
        topic="training",
        words="A disk that fills up while a checkpoint is saved is one line in all processes; the checkpoint "
        "before is whole, and the run goes on from it.",
        test="tests/training/test_pretrain.py::"
        "test_a_disk_that_fills_up_ends_a_run_in_all_processes_and_it_goes_on_later",
        said=("docs/training.md: checkpoints are as they were",),
        seconds=15,
    ),
    Promise(
        name="full disk at each byte",
        topic="training",
        words="A save that finds the disk full, a quota used up or a disk that fails keeps what was there.",
        test="tests/models/test_checkpoint.py::"
        "test_a_full_disk_is_said_in_plain_words_and_keeps_what_was_there",
        seconds=0.1,
    ),
    Promise(
        name="keep going",
        topic="training",
        words="With --keep-going, a disk that fills up costs checkpoints, each in one line, and not the run, "
        "unless the last one finds no room; the one that is there is whole, and the bits in the end are the "
        "same.",
        test=f"{_HERE}/test_training.py::test_with_keep_going_a_full_disk_costs_checkpoints_and_not_the_run",
        said=(
            "docs/training.md: With `--keep-going` a checkpoint that cannot be written is a warning",
            "docs/configuration.md: and the one at the end of training has to be written in any case",
        ),
        tries=3,
        short=1,
        seconds=12,
    ),
    Promise(
        name="gap in the log",
        topic="training",
        words="With --keep-going, lines of the log that find no room are left out with a warning.",
        test="tests/training/test_run_log.py::test_a_log_that_is_to_keep_going_has_a_gap_where_the_disk_was_full",
        said=("docs/training.md: Lines of the log that find no room are left out with a warning",),
        seconds=0.1,
    ),
    Promise(
        name="killed while saving",
        topic="training",
        words="A process that is killed while a checkpoint is saved, the one that saves or another, leaves "
        "the last one whole: the run goes on from it, with --max-restarts by itself, to the same bits.",
        test=f"{_HERE}/test_training.py::"
        "test_a_process_killed_while_a_checkpoint_is_saved_leaves_the_last_one_whole",
        said=("docs/training.md: If a process dies while a checkpoint is saved, the last one is whole",),
        seconds=25,
    ),
    Promise(
        name="loss that is no number",
        topic="training",
        words="A loss that becomes NaN ends the run and keeps the last good checkpoint.",
        test="tests/training/test_pretrain.py::"
        "test_a_loss_that_becomes_nan_stops_the_run_and_keeps_the_last_good_checkpoint",
        said=("docs/training.md: none is written if the loss or a weight is not finite",),
        seconds=3,
    ),
    Promise(
        name="worker fails",
        topic="training",
        words="A track that a loader cannot read, in either engine and any process, ends training with one "
        "line and leaves no process.",
        test="tests/cli/test_processes.py::test_a_track_that_cannot_be_read_ends_pretraining_with_one_line",
        seconds=15,
    ),
    Promise(
        name="tracker fails",
        topic="training",
        words="A tracker that fails is one warning, and the log goes on.",
        test="tests/training/test_trackers.py::test_a_tracker_that_fails_is_one_warning_and_the_log_goes_on",
        said=("docs/using.md: one note, and training goes on without it",),
        seconds=0.5,
    ),
    Promise(
        name="tracker hangs",
        topic="training",
        words="A tracker that hangs does not keep a run from ending.",
        test="tests/training/test_trackers.py::test_a_tracker_that_hangs_does_not_keep_a_run_from_ending",
        said=("docs/using.md: The end of a run waits up to a minute for what is still to be sent",),
        seconds=0.5,
    ),
    Promise(
        name="compiling fails",
        topic="training",
        words="A network that cannot be compiled trains as it is, with one warning.",
        test="tests/training/test_pretrain.py::test_a_model_that_cannot_be_compiled_trains_as_it_is_with_one_warning",
        said=("docs/training.md: warning says so and the network trains as it is",),
        seconds=2,
    ),
    Promise(
        name="process killed",
        topic="training",
        words="A process that is killed ends all, and its rank and the signal are shown.",
        test="tests/processes/test_launch.py::test_a_killed_process_ends_the_job_with_its_rank_and_signal",
        said=("docs/training.md: If a process dies, all of them end, and its",),
        seconds=12,
    ),
    Promise(
        name="mistake in any process",
        topic="training",
        words="An error that the user can mend is shown at once, whatever --max-restarts says.",
        test="tests/processes/test_launch.py::test_an_error_of_the_user_in_any_process_is_not_tried_again",
        said=("docs/training.md: is shown at once instead, as another start would end with it too",),
        seconds=12,
    ),
    Promise(
        name="restarts",
        topic="training",
        words="With --max-restarts, all processes start again after one was killed.",
        test="tests/processes/test_launch.py::test_a_job_that_may_restart_starts_all_processes_again",
        said=("docs/training.md: With `--max-restarts 3`, all processes start again from",),
        seconds=15,
    ),
    Promise(
        name="torchrun",
        topic="training",
        words="Under torchrun, a process that is killed ends all, and torchrun says which and why; with its "
        "own --max-restarts all start again and end with the same bits.",
        test=f"{_HERE}/test_training.py::test_under_torchrun_a_killed_process_ends_all_or_starts_all_again",
        said=("docs/training.md: Under `torchrun`, its own `--max-restarts` does this",),
        seconds=30,
    ),
    Promise(
        name="two nodes of torchrun",
        topic="training",
        words="All nodes of torchrun start again when one loses a process.",
        test="tests/processes/test_launch.py::"
        "test_two_nodes_of_torchrun_start_again_together_when_one_loses_its_process",
        said=("docs/training.md: and all nodes start",),
        seconds=20,
    ),
    Promise(
        name="two hosts",
        topic="training",
        words="Two hosts with two processes each learn what four processes of one machine learn, to the same "
        "bits.",
        test=f"{_HERE}/test_hosts.py::test_two_hosts_learn_what_as_many_processes_of_one_machine_learn",
        said=("docs/scaling.md: to the weights of four processes on one machine",),
        seconds=60,
    ),
    Promise(
        name="network cut for a moment",
        topic="training",
        words="A network that is back before --timeout is over costs time alone.",
        test=f"{_HERE}/test_hosts.py::test_a_cable_that_is_mended_within_the_timeout_costs_time_alone",
        said=("docs/scaling.md: training waits, and goes on",),
        seconds=60,
    ),
    Promise(
        name="network cut",
        topic="training",
        words="A network that is cut ends the processes of both hosts with an error, within the time that "
        "--timeout allows, and leaves none.",
        test=f"{_HERE}/test_hosts.py::"
        "test_a_cut_cable_ends_the_processes_of_both_hosts_with_an_error_within_the_timeout",
        said=("docs/training.md: waits for another in vain for `--timeout`",),
        seconds=90,
    ),
    Promise(
        name="network mended",
        topic="training",
        words="With torchrun's --max-restarts, all start again when the network is back, and go on from the "
        "checkpoint to the same bits.",
        test=f"{_HERE}/test_hosts.py::"
        "test_when_a_cut_cable_is_mended_all_go_on_from_the_checkpoint_to_the_same_weights",
        said=("docs/scaling.md: when the network is back",),
        seconds=120,
    ),
    Promise(
        name="SLURM's time is up",
        topic="training",
        words="A job of SLURM whose time is up saves, goes back into the queue, and goes on when it starts "
        "again.",
        test="tests/processes/test_slurm_scripts.py::"
        "test_a_job_of_slurm_whose_time_is_up_saves_and_goes_on_when_it_is_started_again",
        said=("docs/scaling.md: and ends, and the job goes back into the queue",),
        seconds=60,
    ),
    Promise(
        name="process hangs",
        topic="training",
        words="A process that hangs ends the job when --timeout is over, and the others say so.",
        test="tests/processes/test_launch.py::test_a_process_that_hangs_ends_the_job_when_the_timeout_is_over",
        said=("docs/training.md: waits for another in vain for `--timeout`",),
        seconds=15,
    ),
    Promise(
        name="two trainings in one folder",
        topic="training",
        words="Of two trainings in one folder, the second is refused and the first is not disturbed.",
        test=f"{_HERE}/test_training.py::test_of_two_trainings_in_one_folder_the_second_is_refused",
        said=("docs/training.md: a second job in the same",),
        tries=5,
        short=1,
        seconds=6,
    ),
    Promise(
        name="three trainings at once",
        topic="training",
        words="Three trainings at once on one machine and one shard set end with the bits of one.",
        test=f"{_HERE}/test_training.py::"
        "test_three_trainings_at_once_on_one_shard_set_end_with_the_bits_of_one",
        tries=3,
        short=1,
        seconds=12,
    ),
    Promise(
        name="training from a bucket",
        topic="training",
        words="Training from object storage ends with the weights of training from local shards.",
        test="tests/storage/test_loading.py::"
        "test_a_few_steps_from_a_bucket_end_with_the_weights_of_local_shards",
        said=("docs/scaling.md: batches and weights are the same",),
        seconds=10,
    ),
    Promise(
        name="launcher killed",
        topic="processes",
        words="When the launcher is killed, at start-up or later, all its processes end.",
        test="tests/processes/test_loopback.py::test_all_processes_end_when_their_launcher_is_killed",
        seconds=15,
    ),
    Promise(
        name="loopback only",
        topic="processes",
        words="Processes of one machine listen on its loopback interface only.",
        test="tests/processes/test_loopback.py::"
        "test_processes_of_one_machine_listen_on_its_loopback_only_and_meet_in_a_private_folder",
        said=("docs/training.md: listen on the loopback interface",),
        seconds=30,
    ),
    Promise(
        name="loopback only, SLURM",
        topic="processes",
        words="So do tasks of SLURM on one node.",
        test="tests/processes/test_loopback.py::test_tasks_of_slurm_on_one_node_listen_on_its_loopback_only",
        seconds=15,
    ),
    Promise(
        name="nothing left",
        topic="processes",
        words="Training that ends by itself or by a signal leaves no process, no file in the temporary "
        "folder and none in /dev/shm.",
        test=f"{_HERE}/test_left_behind.py::test_a_training_leaves_no_process_and_no_file_however_it_ends",
        tries=8,
        short=2,
        seconds=6,
    ),
    Promise(
        name="worker killed while it counts",
        topic="processes",
        words="A worker process that is killed while it counts holds no lock: the job ends at once.",
        test=f"{_HERE}/test_processes.py::test_a_worker_killed_while_it_counts_keeps_no_other_from_counting",
        tries=20,
        short=1,
        seconds=2,
    ),
    Promise(
        name="lock that is no file",
        topic="processes",
        words="What is no file in the place of the lock of a run is one clear error.",
        test="tests/test_folder_lock.py::test_what_is_no_file_is_refused_and_not_waited_for",
        seconds=0.1,
    ),
    Promise(
        name="demo in every environment",
        topic="processes",
        words="The whole demo passes for a user without an entry in /etc/passwd, without HOME, with a "
        "read-only one, without TMPDIR, with an odd TZ, in the locale C, and on latin-1 and ASCII terminals.",
        test="tests/cli/test_environment.py::test_the_whole_demo_passes_in_every_environment",
        seconds=25,
    ),
    Promise(
        name="any terminal",
        topic="processes",
        words="Names of genres that a terminal cannot show do not keep `inspect` from showing the others.",
        test="tests/cli/test_environment.py::test_a_shard_set_is_shown_on_every_terminal",
        seconds=3,
    ),
    Promise(
        name="user without a name",
        topic="processes",
        words="A user with a number and no name can import what training needs.",
        test="tests/cli/test_environment.py::test_a_user_without_a_name_can_train",
        seconds=8,
    ),
    Promise(
        name="loaders left open",
        topic="processes",
        words="A script ends in the middle of an epoch of either engine, by itself, by an error or Ctrl-C.",
        test="tests/pipelines/test_processes.py::"
        "test_a_process_with_loaders_of_both_engines_ends_in_the_middle_of_their_epochs",
        seconds=5,
    ),
    Promise(
        name="what killed launchers left",
        topic="processes",
        words="A launcher removes what killed ones left in the temporary folder, and nothing else.",
        test="tests/processes/test_loopback.py::"
        "test_a_launcher_removes_what_killed_ones_left_and_nothing_else",
        seconds=0.5,
    ),
)

_STREAMING = "https://docs.mosaicml.com/projects/streaming/en/latest"
_DALI = "https://docs.nvidia.com/deeplearning/dali/user-guide/docs"
_WEBDATASET = "https://webdataset.github.io/webdataset"

PEERS = {
    "packing": {
        "mosaicml-streaming": (
            "shards can be written with hashes; we found no promise about a writer that is killed.",
            f"{_STREAMING}/preparing_datasets/basic_dataset_conversion.html",
        ),
        "webdataset": (
            "ShardWriter writes tars; we found no promise about a writer that is killed.",
            f"{_WEBDATASET}/api/webdataset/writer.html",
        ),
        "NVIDIA DALI": (
            "reads tars and makes their indices with wds2idx; it writes no audio.",
            f"{_DALI}/examples/general/data_loading/dataloading_webdataset.html",
        ),
    },
    "reading": {
        "mosaicml-streaming": (
            "`validate_hash` names a hash that downloaded shards are compared with, by default none; "
            "`download_retry` repeats a download.",
            f"{_STREAMING}/api_reference/generated/streaming.StreamingDataset.html",
        ),
        "webdataset": (
            "a handler decides what follows an error: it is raised, or with or without a warning the "
            "sample is left out or the stream ends. We found nothing about checksums.",
            f"{_WEBDATASET}/api/webdataset/handlers.html",
        ),
        "NVIDIA DALI": (
            "samples without a component are empty, left out or an error (`missing_component_behavior`). "
            "We found nothing about checksums.",
            f"{_DALI}/examples/general/data_loading/dataloading_webdataset.html",
        ),
    },
    "training": {
        "mosaicml-streaming": (
            "goes on in the middle of an epoch, deterministically, from a state that the training loop saves "
            "and restores.",
            f"{_STREAMING}/distributed_training/fast_resumption.html",
        ),
        "webdataset": (
            "we found no promise about going on in the middle of an epoch.",
            f"{_WEBDATASET}/",
        ),
        "NVIDIA DALI": (
            "a pipeline that is restored from its checkpoint gives the same outputs "
            "(`enable_checkpointing`); the training loop saves and restores it.",
            f"{_DALI}/advanced_topics_checkpointing.html",
        ),
    },
    "processes": {
        "mosaicml-streaming": (
            "shared memory that a killed job has left is cleaned up by a call, `clean_stale_shared_memory`.",
            f"{_STREAMING}/api_reference/streaming.base.util.html",
        ),
        "webdataset": (
            "we found no promise; worker processes are those of torch's DataLoader.",
            f"{_WEBDATASET}/",
        ),
        "NVIDIA DALI": (
            "we found no promise; a pipeline runs in threads of the process that made it.",
            f"{_DALI}/index.html",
        ),
    },
}
"""What the documentation of other loaders promises, by topic: words and the page."""


def promise_of(node: str) -> Promise:
    """Return the promise that the test with the id `node` is behind."""
    name = node.partition("[")[0]
    return next(promise for promise in PROMISES if promise.test == name)
