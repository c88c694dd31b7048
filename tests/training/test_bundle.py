"""The bundle: what is saved is what answers, whatever is changed is refused, and a champion changes in one move."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.errors import BundleError, ReleaseNotFound, SpecMismatch
from features.snapshot import Snapshot, build_snapshot
from training import bundle as module
from training.bundle import (
    BUNDLE_FILE,
    CHAMPION_FILE,
    MANIFEST_FILE,
    RELEASES_FOLDER,
    TIERS_FILE,
    Release,
    load_champion,
    load_release,
    publish,
    save_release,
    write_whole,
)

FLIPS = 40


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory):
    """A release on disk that no test changes, and its digest."""
    folder = tmp_path_factory.mktemp("saved") / "release"
    folder.mkdir()
    return folder, save_release(folder, trained.bundle, trained.tiers)


@pytest.fixture(scope="module")
def snapshot(trained, tables, shop):
    return build_snapshot(tables, [shop.request.as_of], trained.bundle.spec)


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of the release to change, and its digest."""
    folder, digest = saved
    return Path(shutil.copytree(folder, tmp_path / "release")), digest


def test_what_was_saved_is_what_answers(saved, trained, snapshot):
    loaded = load_release(saved[0], "7", saved[1])
    before = Release(trained.bundle, trained.tiers, "7").score(snapshot)
    pd.testing.assert_frame_equal(loaded.score(snapshot), before, check_exact=True)
    assert loaded.bundle.metrics == trained.bundle.metrics and loaded.tiers == trained.tiers
    assert loaded.bundle.provenance == json.loads(json.dumps(trained.bundle.provenance))
    assert len(before) > 1000 and before["p_repurchase_90d"].nunique() > 500


def test_saving_what_was_loaded_gives_equal_bytes(saved, tmp_path):
    loaded = load_release(saved[0], "7", saved[1])
    assert save_release(tmp_path, loaded.bundle, loaded.tiers) == saved[1]
    for path in saved[0].iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_scores_never_fall_with_the_horizon_and_churn_is_the_rest(snapshot, trained):
    scores = trained.bundle.score(snapshot, "1")
    raw = {head.column: head.predict(snapshot.matrix()) for head in trained.bundle.heads}
    raised = 0
    for short, long in (("p_repurchase_28d", "p_repurchase_90d"), ("ltv_28d", "ltv_90d")):
        assert (scores[short] <= scores[long]).all()
        raised += (raw[short] > raw[long]).sum()
    print(f"{len(scores)} customers, {raised} scores raised")
    np.testing.assert_array_equal(scores["p_churn"], 1.0 - scores["p_repurchase_90d"])
    assert raised > 0 and scores.filter(like="ltv").min().min() >= 0
    assert scores.filter(like="p_").min().min() > 0 and scores.filter(like="p_").max().max() < 1


def test_a_snapshot_of_other_features_is_refused(snapshot, trained):
    fewer = replace(snapshot.spec, names=snapshot.spec.names[:-1])
    with pytest.raises(SpecMismatch, match=r"are not the model's .* build it with the bundle's own spec"):
        trained.bundle.score(Snapshot(snapshot.frame, fewer), "1")


def test_nobody_gets_no_scores_in_the_same_columns(snapshot, trained):
    release = Release(trained.bundle, trained.tiers, "1")
    empty = release.score(Snapshot(snapshot.frame.iloc[:0], snapshot.spec))
    assert len(empty) == 0 and empty.columns.tolist() == release.columns


# Verification


def _flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def _faults(path: Path):
    """Every way to spoil one file, by name; each undone by the caller."""
    size = path.stat().st_size
    for place in np.linspace(0, size - 1, FLIPS).astype(int):
        yield f"byte {place} flipped", lambda place=place: _flip(path, place)
    for kept in (0, 1, size // 2, size - 1):
        yield f"cut to {kept}", lambda kept=kept: path.write_bytes(path.read_bytes()[:kept])
    yield "grown", lambda: path.write_bytes(path.read_bytes() + b"\n")
    yield "removed", path.unlink
    yield "a folder", lambda: (path.unlink(), path.mkdir())
    yield "a link to itself elsewhere", lambda: _link(path)
    yield "a dangling link", lambda: (path.unlink(), path.symlink_to("nowhere"))


def _link(path: Path) -> None:
    elsewhere = path.parent.parent / f"elsewhere-{path.name}"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def _restore(path: Path, content: bytes) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def test_every_fault_in_every_file_is_refused_by_name(copy):
    folder, digest = copy
    refused = 0
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for fault, spoil in _faults(path):
            spoil()
            with pytest.raises(BundleError) as error:
                load_release(folder, "1", digest)
            assert path.name in str(error.value), fault
            refused += 1
            _restore(path, content)
        load_release(folder, "1", digest)  # the control: as it was, it loads
    print(f"{refused} faults refused in {len(list(folder.iterdir()))} files")
    assert refused == 7 * (FLIPS + 9)


def test_files_that_nobody_listed_are_refused(copy):
    folder, digest = copy
    (folder / "extra.txt").write_text("")
    (folder / "more").mkdir()
    with pytest.raises(BundleError, match=r"release holds files that its manifest does not list: extra\.txt, more"):
        load_release(folder, "1", digest)


@pytest.mark.parametrize("digest", ["", "0" * 64, None])
def test_another_digest_is_refused(saved, digest):
    with pytest.raises(BundleError, match=r"manifest\.json in release is not the one that was registered"):
        load_release(saved[0], "1", digest)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BundleError, match=r"manifest\.json is missing in nothing"):
        load_release(tmp_path / "nothing", "1", "0" * 64)


def _sealed(folder: Path) -> str:
    """The digest of a folder after its manifest was written anew: the hashes are right, whatever they are of."""
    hashes = {p.name: module._sha256(p.read_bytes()) for p in folder.iterdir() if p.name != MANIFEST_FILE}
    module._write_json(folder / MANIFEST_FILE, {"format": module.FORMAT, "sha256": hashes})
    return module._sha256((folder / MANIFEST_FILE).read_bytes())


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (BUNDLE_FILE, "[]"),
        (BUNDLE_FILE, "{}"),
        (BUNDLE_FILE, '{"heads": [{}], "spec": []}'),
        (BUNDLE_FILE, "\udcff"),
        (TIERS_FILE, "null"),
        (TIERS_FILE, '{"score": 1}'),
    ],
)
def test_what_was_sealed_malformed_is_refused(copy, file, content):
    folder, _ = copy
    (folder / file).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(BundleError, match="release cannot be read, although its hashes are right"):
        load_release(folder, "1", _sealed(folder))


@pytest.mark.parametrize("content", ["[]", "{", '{"sha256": {}}', '{"format": 1, "sha256": 5}'])
def test_a_manifest_that_is_none_is_refused(copy, content):
    folder, _ = copy
    (folder / MANIFEST_FILE).write_text(content)
    with pytest.raises(BundleError, match="is not a manifest of Tiercast"):
        load_release(folder, "1", module._sha256(content.encode()))


def test_a_later_format_is_refused(copy):
    folder, _ = copy
    content = (folder / MANIFEST_FILE).read_text().replace('"format": 1', '"format": 2')
    (folder / MANIFEST_FILE).write_text(content)
    with pytest.raises(BundleError, match="release is of format 2; this Tiercast reads format 1"):
        load_release(folder, "1", module._sha256(content.encode()))


def test_a_model_of_other_features_is_refused(trained, tmp_path):
    spec = trained.bundle.spec
    turned = replace(trained.bundle, spec=replace(spec, names=spec.names[::-1]))
    digest = save_release(tmp_path, turned, trained.tiers)
    with pytest.raises(BundleError, match="was trained on other features than the bundle's spec lists"):
        load_release(tmp_path, "1", digest)


# The champion


@pytest.fixture
def other(trained, tmp_path):
    """A second release, told apart by its tiers, with its version and digest."""
    folder = tmp_path / "other"
    folder.mkdir()
    tiers = replace(trained.tiers, names=tuple(name.upper() for name in trained.tiers.names))
    return folder, "2", save_release(folder, trained.bundle, tiers)


def test_publishing_makes_a_champion_that_does_not_need_its_source(copy, tmp_path):
    folder, digest = copy
    assert publish(tmp_path / "workspace", folder, "1", digest).version == "1"
    shutil.rmtree(folder)
    assert load_champion(tmp_path / "workspace").version == "1"


class StoppedError(Exception):
    """In the middle."""


def _stop(*arguments, **named):
    raise StoppedError


def _copy_half(source, target, **named):
    shutil.copy(next(Path(source).iterdir()), target)
    raise StoppedError


@pytest.mark.parametrize(
    ("where", "what", "instead"),
    [
        (module.shutil, "copytree", _copy_half),
        (Path, "rename", _stop),
        (module, "write_whole", _stop),
        (Path, "replace", _stop),
        (module.json, "dumps", _stop),
    ],
)
def test_stopping_in_the_middle_leaves_the_old_champion(saved, other, tmp_path, monkeypatch, where, what, instead):
    workspace = tmp_path / "workspace"
    publish(workspace, saved[0], "1", saved[1])
    monkeypatch.setattr(where, what, instead)
    with pytest.raises(StoppedError):
        publish(workspace, *other)
    monkeypatch.undo()
    assert load_champion(workspace).version == "1"
    left = [path.name for path in [*workspace.iterdir(), *(workspace / RELEASES_FOLDER).iterdir()]]
    assert not [name for name in left if name.startswith(".")]
    publish(workspace, *other)
    assert load_champion(workspace).version == "2"


def test_a_changed_release_is_not_published_and_the_champion_stays(saved, other, tmp_path):
    workspace = tmp_path / "workspace"
    publish(workspace, saved[0], "1", saved[1])
    _flip(other[0] / TIERS_FILE, 5)
    with pytest.raises(BundleError, match=r"changed since it was registered: tiers\.json"):
        publish(workspace, *other)
    assert load_champion(workspace).version == "1"


def test_a_version_number_used_again_by_a_new_registry_is_another_release(saved, other, tmp_path):
    workspace = tmp_path / "workspace"
    publish(workspace, saved[0], "1", saved[1])
    publish(workspace, other[0], "1", other[2])
    assert load_champion(workspace).tiers.names[0] == "PLATINUM"


def test_promoting_again_mends_a_changed_copy(saved, tmp_path):
    workspace = tmp_path / "workspace"
    publish(workspace, saved[0], "1", saved[1])
    kept = next((workspace / RELEASES_FOLDER).iterdir())
    _flip(kept / BUNDLE_FILE, 5)
    with pytest.raises(BundleError, match=r"bundle\.json"):
        load_champion(workspace)
    publish(workspace, saved[0], "1", saved[1])
    assert load_champion(workspace).version == "1"


def test_without_a_champion_the_way_to_one_is_told(tmp_path):
    with pytest.raises(ReleaseNotFound, match=r"no champion in .*; train a release, .* `tiercast promote challenger`"):
        load_champion(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"null", b'{"version": "1"}', b"\xff\xfe"])
def test_a_pointer_that_cannot_be_read_is_refused(tmp_path, content):
    (tmp_path / CHAMPION_FILE).write_bytes(content)
    with pytest.raises(BundleError, match=r"champion\.json in .* cannot be read; promote a release again"):
        load_champion(tmp_path)


def test_a_pointer_to_nothing_is_refused(tmp_path):
    (tmp_path / CHAMPION_FILE).write_text('{"version": "9", "sha256": "%s"}' % ("ab" * 32))
    with pytest.raises(BundleError, match=r"manifest\.json is missing in 9-abab"):
        load_champion(tmp_path)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "made" / "file.json"
    write_whole(target, lambda path: path.write_text("old"))

    def half(path: Path) -> None:
        path.write_text("ne")
        raise StoppedError

    with pytest.raises(StoppedError):
        write_whole(target, half)
    assert target.read_text() == "old" and [p.name for p in target.parent.iterdir()] == ["file.json"]
