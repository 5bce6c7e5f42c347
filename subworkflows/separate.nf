// Blocks of labels -> blocks of ids, in which objects that touch are apart. A task reads any box of its sample, so that
// the blocks are gathered first; objects are as they would be in the whole volume.
include { GATHER_BLOCKS    } from '../modules/gather_blocks/main'
include { MARK_CORES       } from '../modules/mark_cores/main'
include { LINK_CORES       } from '../modules/link_cores/main'
include { SEPARATE_OBJECTS } from '../modules/separate_objects/main'
include { groupsOf; groupByBatch } from '../functions/channels'

workflow SEPARATE {
    take:
    ch_blocks // [meta, blocks of the whole batch]
    ch_grids // [meta, grids, rows]
    job // [instances: border_core or watershed, options, code]

    main:
    ch_counts = ch_grids.map { meta, _grids, rows -> [meta.id, groupsOf(rows).size()] }
    GATHER_BLOCKS(
        ch_blocks.join(ch_grids).map { meta, blocks, grids, _rows -> [meta, blocks, grids] },
        job.options.gather,
        job.code.gather_blocks,
    )
    // [meta, group, rows]
    ch_groups = ch_grids.flatMap { meta, _grids, rows -> groupsOf(rows).collect { group -> [meta, group, rows] } }
    ch_records = GATHER_BLOCKS.out.record

    // [meta, stores, numbers of their marks]
    ch_sources = GATHER_BLOCKS.out.stores.map { meta, stores -> [meta, stores, []] }
    if (job.instances == 'border_core') {
        ch_marking = ch_groups
            .combine(GATHER_BLOCKS.out.stores, by: 0)
            .combine(ch_grids, by: 0)
            .map { meta, group, rows, stores, grids, _rows -> [meta, group, stores, rows, grids] }
        MARK_CORES(ch_marking, job.options.mark, job.code.mark_cores)

        ch_cores = groupByBatch(MARK_CORES.out.cores, ch_counts)
            .join(groupByBatch(MARK_CORES.out.marks, ch_counts))
            .join(GATHER_BLOCKS.out.grids)
        LINK_CORES(ch_cores, job.code.link_cores)
        ch_sources = LINK_CORES.out.stores.join(LINK_CORES.out.markers)
        ch_records = ch_records.mix(MARK_CORES.out.record, LINK_CORES.out.record)
    }

    ch_separating = ch_groups
        .combine(ch_sources, by: 0)
        .combine(GATHER_BLOCKS.out.grids, by: 0)
        .map { meta, group, rows, stores, markers, grids -> [meta, group, stores, markers, rows, grids] }
    SEPARATE_OBJECTS(ch_separating, job.options.separate, job.code.separate_objects)

    ch_separated = SEPARATE_OBJECTS.out.blocks
    // The rows are those of the labels: both have the same blocks.
    ch_id_grids = GATHER_BLOCKS.out.grids
        .join(ch_grids)
        .map { meta, grids, _grids, rows -> [meta, grids, rows] }
    ch_all_records = ch_records.mix(SEPARATE_OBJECTS.out.record)

    emit:
    ch_separated // [meta, group, blocks of the group]
    ch_id_grids // [meta, grids, rows]
    ch_records = ch_all_records
}
