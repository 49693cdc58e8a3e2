"""Whatever the disk kept when the power went, nothing that was acknowledged is lost and no reader dies."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from turnlane.testing.crash import CrashReport, ShimUnavailable, build_shim, crash_store
from turnlane.testing.powerloss import Content, Cut, Directory, Naming, Unrecorded, masks_of, power_loss

LEVEL = os.environ.get("TURNLANE_LEVEL", "default")
IMAGES = {"default": 300, "ci": 7_200, "nightly": 30_000, "release": 150_000}[LEVEL]
HERE = str(Path(__file__).parent)

pytestmark = pytest.mark.timeout(120 + IMAGES // 30)


@pytest.fixture(autouse=True)
def workloads_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        build_shim()
    except ShimUnavailable as error:
        pytest.skip(str(error))
    monkeypatch.syspath_prepend(HERE)


def planted(workload: str, recover: str = "workloads:recover", *, images: int = 200, **options: object) -> CrashReport:
    return power_loss(f"planted_workloads:{workload}", recover, images=images, **options)  # type: ignore[arg-type]


def plain(workload: str, recover: str = "numbers_of", **options: object) -> CrashReport:
    return planted(workload, f"planted_workloads:{recover}", **options)  # type: ignore[arg-type]


def messages(report: CrashReport) -> str:
    return "\n".join(finding.message for finding in report.findings)


# -- the store


@pytest.mark.parametrize(
    ("workload", "recover"),
    [
        ("create_and_append", "recover"),
        ("many", "recover"),
        ("grow", "recover"),
        ("care", "recover_care"),
        ("orphaned", "recover"),
        ("half_durable", "recover"),
        ("tolerant", "recover"),
    ],
)
def test_no_image_after_a_power_loss_lacks_what_was_acknowledged(workload: str, recover: str) -> None:
    report = power_loss(f"workloads:{workload}", f"workloads:{recover}", images=IMAGES)
    print(workload, report)
    assert report.complete and report.runs > 200, report
    report.raise_if_broken()


def test_a_journal_below_directories_that_were_not_there_outlives_a_power_loss() -> None:
    power_loss("workloads:deep", "workloads:recover_deep", images=200).raise_if_broken()


# -- what is asked for


@pytest.mark.parametrize("images", [0, -1])
def test_no_images_are_no_proof(images: int) -> None:
    with pytest.raises(ValueError, match=f"images has to be at least 1, and is {images}"):
        plain("by_itself", images=images)


def test_a_workload_that_acknowledges_nothing_does_not_pass() -> None:
    report = plain("three_sectors")
    assert not report.ok and "the workload acknowledged nothing: call ctx.acknowledged(n)" in messages(report)


def test_the_report_of_images_says_the_verdict_and_the_first_findings() -> None:
    report = plain("beside_it")
    lines = str(report).splitlines()
    found = len(report.findings)
    assert lines[0].startswith(f"images: FAILED, {found} findings in {report.runs} images at "), report
    assert "kills" not in lines[0] and lines[1].strip() == str(report.findings[0])
    passed = plain("by_itself")
    assert passed.ok and str(passed).startswith("images: ok, 0 findings in "), passed


# -- planted bugs


@pytest.mark.parametrize(
    ("bug", "message"),
    [
        ("without_sync", "acknowledged and lost"),
        ("without_meta_sync", "acknowledged and lost"),
        ("without_directory_sync", "acknowledged and lost"),
        ("created_in_place", "state_not_ours"),
        ("compacted_without_sync", "state_damaged"),
    ],
)
def test_a_missing_sync_is_found(bug: str, message: str) -> None:
    report = planted(bug)
    print(bug, report, f"first found by image {report.findings[0].run}" if report.findings else "")
    assert message in messages(report), report.findings[:5]


MISSING = ["without_sync", "without_meta_sync", "without_directory_sync"]


@pytest.mark.parametrize("bug", MISSING[:1] if LEVEL == "default" else MISSING)
def test_no_kill_finds_a_missing_sync(bug: str) -> None:
    report = crash_store(f"planted_workloads:{bug}", "workloads:recover")
    print(bug, report)
    assert report.died
    report.raise_if_broken()


def test_only_the_checksum_keeps_a_lost_sector_from_being_served() -> None:
    """The disk lies here, so events may be lost and the engine may fail: but nothing wrong is served as right."""

    def right(groups: Sequence[Sequence[int]], acknowledged: Sequence[int], found: Sequence[int]) -> str | None:
        return f"served wrong: {found}" if any(number < 0 for number in found) else None

    checked = plain("lied_to", "served", judge=right)
    unchecked = plain("lied_to", "served_unchecked", judge=right)
    assert checked.complete and "served wrong" not in messages(checked), checked.findings[:5]
    assert "served wrong" in messages(unchecked), unchecked


# -- the model of the disk, on files of a few bytes


def test_every_subset_of_the_sectors_since_the_last_sync_is_an_image() -> None:
    report = plain("three_sectors")
    no_file, subsets = 1, 2**3
    assert report.complete and report.runs == no_file + subsets, report


def test_sectors_have_the_size_that_is_asked_for() -> None:
    assert plain("three_sectors", sector_bytes=4_096).runs == 1 + 2


def test_where_many_sectors_are_pending_the_same_seed_gives_the_same_images() -> None:
    reports = [plain("many_sectors", "numbers_or_death", images=60, seed=seed) for seed in (1, 1, 2)]
    found = [[(finding.mode, finding.run) for finding in report.findings] for report in reports]
    assert found[0] == found[1] != found[2]
    assert all(report.runs == 60 for report in reports)


def test_nothing_all_beginnings_and_all_but_one_are_always_among_the_images() -> None:
    tree = Directory()
    cut = Cut(1, (), Content(), tuple(Naming(tree, f"+{number}", ()) for number in range(20)))
    masks = list(masks_of(cut, Random(0), 100))
    whole = (1 << 20) - 1
    assert masks[:2] == [0, whole] and len(set(masks)) > 100
    assert {(1 << number) - 1 for number in range(21)} <= set(masks)
    assert {whole ^ 1 << number for number in range(20)} <= set(masks)


def test_an_image_that_kills_its_reader_is_a_finding_and_the_others_are_opened_all_the_same() -> None:
    report = plain("three_sectors", "numbers_or_death", judge=lambda *_: None)
    assert report.runs == 9, report
    holes = {"kept: log@512", "kept: log@1024", "lost: log@0", "lost: log@512"}
    _, *found = report.findings  # the first says that nothing was acknowledged
    assert {finding.mode.partition("; ")[2] for finding in found} == holes
    assert {finding.message for finding in found} == {"recovery died by signal 6"}


def test_a_write_through_a_descriptor_that_syncs_is_kept_and_keeps_no_other() -> None:
    plain("by_itself").raise_if_broken()
    assert "recovered [0, 2], which is not a beginning" in messages(plain("beside_it"))


def test_a_rename_is_kept_by_a_sync_of_its_directory() -> None:
    plain("renamed").raise_if_broken()
    assert "acknowledged and lost: [1]" in messages(plain("renamed_without_sync"))


@pytest.mark.parametrize("workload", ["through_a_map", "past_the_shim"])
def test_a_file_that_was_changed_past_the_record_ends_the_run(workload: str) -> None:
    with pytest.raises(Unrecorded, match="not what the recorded calls made of it"):
        plain(workload)
