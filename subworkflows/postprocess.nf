// Blocks of predicted labels -> the same blocks after nnU-Net's post-processing, which looks at whole samples.
include { POSTPROCESS_LABELS } from '../modules/postprocess_labels/main'
include { groupsOf; groupByBatch; byGroup } from '../functions/channels'

workflow POSTPROCESS {
    take:
    ch_blocks // [meta, group, blocks of the group]
    ch_grids // [meta, grids, rows]
    packed // the packages; the labels are those of the first
    job // [steps: postprocessing.json or nothing, code]

    main:
    ch_counts = ch_grids.map { meta, _grids, rows -> [meta.id, groupsOf(rows).size()] }
    ch_whole = groupByBatch(ch_blocks.map { meta, _group, blocks -> [meta, blocks] }, ch_counts)
        .join(ch_grids)
        .map { meta, blocks, grids, _rows -> [meta, blocks, grids] }
    POSTPROCESS_LABELS(ch_whole, packed.map { packages -> packages.take(1) }, job.steps, job.code.postprocess_labels)

    ch_processed = POSTPROCESS_LABELS.out.blocks
        .join(ch_grids)
        .flatMap { meta, blocks, _grids, rows -> byGroup(meta, blocks, rows) }
    ch_records = POSTPROCESS_LABELS.out.record

    emit:
    ch_processed // [meta, group, blocks of the group]
    ch_records
}
