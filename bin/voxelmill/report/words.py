"""Sentences of the report: what was found, what a chart shows, and how it was done, ready for a paper."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from voxelmill import __version__
from voxelmill.report.arrival import POSTPROCESSING
from voxelmill.report.collect import Run, Sample
from voxelmill.report.objects import DROPPED, Cohort, ObjectTable, Quantity, Seam
from voxelmill.report.text import dimensions, listed, plural, quantity, share, significant, size

CONNECTIVITY = {
    "6": "voxels that share a face",
    "18": "voxels that share a face or an edge",
    "26": "voxels that share a face, an edge or a corner",
}
LENGTHS = {
    "longest_path": "the longest of all shortest paths between two voxels of an object's skeleton, across its branch "
    "points, with the staircase of the voxels smoothed out (Gaussian along the path, standard deviation the root mean "
    "square side of a voxel)",
    "longest_branch": "the longest single branch of an object's skeleton, between two ends or branch points, added up "
    "from voxel centre to voxel centre",
}
"""Definition of what is called length."""

LENGTH_NAMES = {"longest_path": "longest path", "longest_branch": "longest branch"}
COMPARED = {"equivalent_diameter": "diameter"}
"""What is compared where it is not length, in one word."""

SURFACE = "Lewiner et al., Journal of Graphics Tools 8, 1–15 (2003)"
BORDER = {
    "measure": "were kept and measured as far as they lie inside",
    "keep": "were kept but not measured",
    "drop": "were left out",
}
THINNING = "Lee, Kashyap and Chu, CVGIP: Graphical Models and Image Processing 56, 462–478 (1994)"
BORDER_CORE = "Gotkowski et al., Powder Technology 434, 119286 (2024)"
WATERSHED = "van der Walt et al., scikit-image, PeerJ 2, e453 (2014)"
NNUNET = "Isensee et al., Nature Methods 18, 203–211 (2021)"


def overview(run: Run) -> str:
    """What was found in the whole run, in a few sentences."""
    here = [sample for sample in run.samples if sample.classes]
    if run.planned_only or not here:
        return "Nothing was segmented: the run ended with the plan." if run.planned_only else "No sample has results."
    samples = plural(len(here), "sample")
    counted = [sample for sample in here if sample.object_count is not None]
    if not counted:
        voxels = sum(sample.image.voxels for sample in here if sample.image)
        labelled = sum(row.voxels for sample in here for row in sample.classes if row.value)
        return f"{samples} segmented: {share(labelled, voxels)} of the voxels belong to a class."
    sentences = [f"{plural(sum(s.object_count or 0 for s in counted), 'object')} in {samples}."]
    return " ".join([*sentences, *_object_sentences([s.objects for s in here if s.objects])])


def sample_overview(table: ObjectTable) -> str:
    """The same of one sample."""
    return " ".join([f"{plural(table.objects, 'object')}.", *_object_sentences([table])])


def _object_sentences(tables: Sequence[ObjectTable]) -> Iterable[str]:
    dropped = {reason: sum(table.dropped.get(reason, 0) for table in tables) for reason in DROPPED}
    if any(dropped.values()):
        reasons = [f"{number:,} {DROPPED[reason]}" for reason, number in dropped.items() if number]
        total = sum(dropped.values())
        yield f"{total:,} {'was' if total == 1 else 'were'} dropped ({listed(reasons)})."
    kept = sum(table.unmeasured for table in tables)
    if kept:
        yield f"{plural(kept, 'object')} at the border {'is' if kept == 1 else 'are'} in the labels but not measured."
    empty = sum(table.skeleton_empty for table in tables)
    if empty:
        yield f"{plural(empty, 'object')} {'has' if empty == 1 else 'have'} no skeleton, and so no length."
    yield from _median("length", [table.measured_length for table in tables])
    yield from _median("equivalent diameter", [table.diameter for table in tables])


def _median(name: str, rows: Sequence[Quantity | None]) -> Iterable[str]:
    """Range of the medians of the samples, where they have one unit."""
    medians = [row.median for row in rows if row is not None and row.median is not None]
    units = {row.unit for row in rows if row is not None}
    if medians and len(units) == 1:
        (unit,) = units
        low, high = quantity(min(medians), unit), quantity(max(medians), unit)
        yield f"Median {name} {low}." if low == high else f"Median {name} of a sample {low} to {high}."


def length_alternative(row: Quantity | None, length: str | None) -> str:
    """What the chart of a sample's lengths shows, for those who do not see it."""
    if row is None:
        return "Chart of length: no object was measured"
    return (
        f"Chart of the {LENGTH_NAMES.get(length or '', 'length')} of {plural(row.n, 'object')}: mean "
        f"{quantity(row.mean, row.unit)}, standard deviation {quantity(row.sd, row.unit)}, median "
        f"{quantity(row.median, row.unit)}, 90 % between {quantity(row.p5, row.unit)} and {quantity(row.p95, row.unit)}"
    )


def size_alternative(table: ObjectTable) -> str:
    """What the chart of a sample's sizes shows."""
    row = table.diameter
    if row is None or table.sizes is None:
        return "Chart of size: no object was measured"
    what = "area" if table.plane else "volume"
    return (
        f"Chart of the equivalent diameter of {plural(row.n, 'object')}, and of their share of the {what}: "
        f"{_sizes(row, table.sizes)}"
    )


def size_sentence(table: ObjectTable) -> str:
    """D10, D50 and D90 below the chart of the sizes; empty where there are none."""
    row = table.diameter
    if row is None or table.sizes is None:
        return ""
    what = "area" if table.plane else "volume"
    return (
        f"{_sizes(row, table.sizes)}: 10, 50 and 90 % of the {what} of all measured objects lie in objects up to these "
        "diameters."
    )


def _sizes(row: Quantity, sizes: Mapping[str, float]) -> str:
    return listed([f"{name.upper()} {quantity(value, row.unit)}" for name, value in sizes.items()])


def compared_name(cohort: Cohort) -> str:
    """What is compared, in one word: length or diameter."""
    return COMPARED.get(cohort.length, "length")


def group_alternative(cohort: Cohort) -> str:
    """What the chart of the groups shows."""
    groups = [
        f"{group.name}: {plural(len(group.samples), 'sample')}, {plural(group.measured, 'object')}, mean "
        f"{quantity(group.mean, cohort.unit)}, median {quantity(group.median, cohort.unit)}"
        for group in cohort.groups
    ]
    return f"Chart of {compared_name(cohort)} by group. {'; '.join(groups)}"


def test_sentence(cohort: Cohort) -> str:
    """Result of the test of the groups, as a paper states it, and what its p value says."""
    test = cohort.test
    if test is None:
        return ""
    parts = [] if test.statistic is None else [f"statistic {significant(test.statistic)}"]
    chance = ""
    if test.p is not None:
        parts.append("p < 0.001" if test.p < 0.001 else f"p = {significant(test.p, 2)}")
        often = "fewer than 1 in 1,000" if test.p < 0.001 else f"{significant(100 * test.p, 2)} %"
        chance = (
            f" If the groups did not differ, chance would set their {test.of} apart as far as here in {often} of runs."
        )
    parts += [
        f"{name} = {significant(value, 3) if isinstance(value, int | float) else value}"
        for name, value in test.effect.items()
        if value is not None
    ]
    return f"{test.name} of {test.of}: {'; '.join(parts) or 'not computed'}.{chance}"


def seam_sentence(seams: Sequence[Seam]) -> str:
    """What the seams' ratios mean."""
    cut = [seam for seam in seams if seam.cuts]
    if not cut:
        return "Not measured: the sample is a single block, so nothing was cut."
    if all(seam.ratio is None for seam in cut):
        return "Not measured: no label changes near the planes where blocks meet."
    visible = [seam for seam in cut if seam.visible]
    if not visible and any(seam.undecided for seam in cut):
        return "There are too few planes where blocks meet to tell a trace of cutting from chance."
    if not visible:
        return "Labels change across the planes where blocks meet as often as elsewhere: cutting left no trace."
    told = [
        f"along {seam.axis} {significant(100 * abs(seam.ratio - 1), 2)} % {'more' if seam.ratio > 1 else 'less'} often"
        for seam in visible
        if seam.ratio is not None
    ]
    return (
        f"Labels change across the planes where blocks meet {listed(told)} than elsewhere, and that is more "
        "than chance. Look at the slices near these planes before you trust lengths across them."
    )


def work_folder(run: Run) -> str:
    """What the work folder holds, and how to free it."""
    held = f"The tasks left {size(run.disk or 0)} in the work folder."
    if run.params.get("cleanup"):
        return f"{held} It was removed at the end of the run, as --cleanup asks: the run cannot be resumed."
    return (
        f"{held} It is needed for -resume only; results do not depend on it unless they were published as symbolic "
        "links. Free it with nextflow clean -f, in the folder where the run was started, or run with --cleanup."
    )


def methods(run: Run) -> tuple[str, ...]:
    """Paragraphs for the methods section of a paper, from the facts of the run."""
    paragraphs = (_segmentation(run), _objects(run), _software(run))
    return tuple(paragraph for paragraph in paragraphs if paragraph)


def _segmentation(run: Run) -> str:
    sentences = []
    given = [s for s in run.samples if s.entry.get("start", "predict") != "predict" and s.failure is None]
    if run.model:
        config, params = run.model.config, run.params
        folds = listed(list(config.folds))
        ensemble = f"the folds {folds} averaged" if len(config.folds) > 1 else f"fold {folds}"
        step = float(params.get("step_size", 0.5))
        axes = [list("zyx"[-len(config.patch_size) :])[axis] for axis in config.mirror_axes]
        mirrored = params.get("mirroring", "on") == "on" and axes
        target = f"{dimensions(config.spacing)} {'mm' if config.spacing_unit == 'mm' else 'µm'}"
        sentences += [
            f"Images were segmented with Voxelmill {__version__} and the nnU-Net model {config.dataset_name} "
            f"(configuration {config.configuration}, trainer {config.trainer}, {ensemble}; {NNUNET}).",
            *(
                f"Its class probabilities were averaged with those of the model {other.config.dataset_name} "
                f"(configuration {other.config.configuration}, trainer {other.config.trainer}, folds "
                f"{listed(list(other.config.folds))}; windows of {dimensions(other.config.patch_size)} voxels) at the "
                "resolution of the image."
                for other in run.others
            ),
            f"The network saw windows of {dimensions(config.patch_size)} voxels at a step of {step:g} of the window, "
            "on one grid for the whole image; overlapping outputs were added with Gaussian weights before the class "
            "was chosen.",
            f"Outputs were averaged over mirrored windows (network axes {listed(axes)})."
            if mirrored
            else "Windows were not mirrored.",
            "Images were not resampled."
            if config.spacing_unit == "none"
            else f"Images were resampled to the model's voxel size of {target}, and the outputs back.",
        ]
        sentences += _postprocessing(run)
    if given:
        what = "Labels" if all(s.entry.get("start") == "assemble" for s in given) else "Labels or instances"
        of = "all samples" if len(given) == len(run.finished) else plural(len(given), "sample")
        sentences.append(f"{what} of {of} were given, not predicted.")
    sentences += _spacing(run.finished)
    return " ".join(sentences)


def _postprocessing(run: Run) -> Iterable[str]:
    """What nnU-Net's post-processing removed, of all samples together."""
    done = [
        counts
        for record in run.records
        if record["process"] == POSTPROCESSING
        for counts in record["counts"].values()
        if counts["steps"]
    ]
    if done:
        components = plural(sum(counts["removed_components"] for counts in done), "component")
        voxels = plural(sum(counts["removed_voxels"] for counts in done), "voxel")
        what = listed(sorted({counts["steps"] for counts in done}))
        yield f"nnU-Net's post-processing kept the {what}: {components} of {voxels} became another label."


def _spacing(samples: Sequence[Sample]) -> Iterable[str]:
    """Voxel sizes of the images, each once."""
    unit = {"um": "µm", "pixel": "px"}
    sizes = {f"{dimensions(s.image.spacing)} {unit[s.image.unit]}" for s in samples if s.image}
    if 0 < len(sizes) <= 3:
        yield f"{'Voxel size' if len(sizes) == 1 else 'Voxel sizes'} (z × y × x) {listed(sorted(sizes))}."
    elif sizes:
        yield f"The images had {len(sizes)} different voxel sizes (see the table of samples)."


def _objects(run: Run) -> str:
    params, tables = run.params, [sample.objects for sample in run.samples if sample.objects]
    if not any(sample.object_count is not None for sample in run.samples):
        return ""
    sentences = []
    if any(s.entry.get("start", "predict") != "analyze" and s.object_count is not None for s in run.samples):
        sentences.append(_definition(params))
    smallest = [
        f"fewer than {plural(int(params['min_object_voxels']), 'voxel')}" if params.get("min_object_voxels") else "",
        f"less than {quantity(float(params['min_object_volume']), 'µm³')}" if params.get("min_object_volume") else "",
        _below_mean(float(params.get("min_object_fraction") or 0)),
    ]
    if any(smallest):
        sentences.append(f"Objects of {' or of '.join(filter(None, smallest))} were left out.")
    else:
        sentences.append("No object was left out for its size.")
    border = BORDER.get(str(params.get("border_objects", "measure")), "")
    sentences.append(f"Objects at the border of the image {border}.")
    if tables:
        lengths = [table.length for table in tables if table.length]
        if lengths:
            sentences.append(f"Each object was thinned to its skeleton ({THINNING}).")
            sentences.append(f"Length is {LENGTHS.get(lengths[0], 'as in the tables')}.")
        sentences += _shapes(tables)
        coarse = sum(table.reduced_resolution for table in tables)
        if coarse:
            sentences.append(
                f"{plural(coarse, 'large object')} {'was' if coarse == 1 else 'were'} thinned on a coarser grid."
            )
        if run.cohort and run.cohort.test and run.cohort.test.p is not None:
            sentences.append(f"Groups were compared on their {run.cohort.test.of} ({run.cohort.test.name}).")
    return " ".join(sentences)


def _definition(params: Mapping[str, Any]) -> str:
    """What an object is."""
    of = "all classes together" if params.get("components_of") == "foreground" else "each class"
    if params.get("instances") == "border_core":
        return (
            f"Objects are the cores of the class {params.get('core_label', 'core')} (voxels that share faces; cores "
            "that are too small count as border), each with the voxels of the class "
            f"{params.get('border_label', 'border')} that it reaches in the fewest steps to the 26 neighbours "
            f"({BORDER_CORE}); a piece without a core is one object."
        )
    if params.get("instances") == "watershed":
        return (
            f"Objects are the basins of a watershed ({WATERSHED}) of {of}, flooded from the thickest places: where the "
            "squared distances to what lies around, summed over 27 voxels, are greatest. An object has one of these "
            f"within {float(params.get('seed_distance', 0)):g} voxels."
        )
    connectivity = str(params.get("connectivity", "6"))
    neighbours = CONNECTIVITY.get(connectivity, "neighbouring voxels")
    return (
        f"Objects are the connected components of {of} in the whole image ({connectivity}-connectivity: {neighbours})."
    )


def _below_mean(fraction: float) -> str:
    return f"less than {significant(100 * fraction, 3)} % of the mean volume of a sample's objects" if fraction else ""


def _shapes(tables: Sequence[ObjectTable]) -> Iterable[str]:
    """How shapes were measured, where any were."""
    measured = [table for table in tables if table.diameter is not None]
    if any(not table.plane for table in measured):
        yield (
            f"The surface of an object is that of marching cubes halfway between voxel centres ({SURFACE}), its "
            "equivalent diameter that of the ball of equal volume, and its sphericity the surface of that ball divided "
            "by its own."
        )
    if any(table.plane for table in measured):
        yield (
            "The perimeter of an object in a plane is the length of its contour halfway between pixel centres "
            "(marching squares), its equivalent diameter that of the disc of equal area, and its circularity 4π area / "
            "perimeter²."
        )
    if measured:
        yield (
            "Its axes are those of the ellipsoid with the same second moments; objects are neighbours where their "
            "voxels share a face."
        )


def _software(run: Run) -> str:
    used = [f"{name} {' and '.join(found)}" for name, found in run.versions.items() if name != "voxelmill"]
    revision = f" (revision {run.revision})" if run.revision else ""
    device = f" Networks ran on {listed(run.devices)}." if run.devices else ""
    return f"Software: Voxelmill {__version__}{revision}, {', '.join(used)}.{device}"
