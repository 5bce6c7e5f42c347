// Blocks of labels -> label stores, with objects where they are wanted. Objects are found block by block, linked across
// blocks once a batch has them all, and written block by block. Those that touch are separated first where that is
// asked for: their blocks and grids then stand in for those of the labels until the store is composed of both.
include { SEPARATE       } from './separate'
include { LABEL_BLOCKS   } from '../modules/label_blocks/main'
include { LINK_OBJECTS   } from '../modules/link_objects/main'
include { RELABEL_BLOCKS } from '../modules/relabel_blocks/main'
include { COMPOSE_STORE  } from '../modules/compose_store/main'
include { groupsOf; groupByBatch; ofBlocks; hasObjects; isSeparated } from '../functions/channels'

workflow ASSEMBLE {
    take:
    ch_blocks // [meta, group, blocks of the group]
    ch_grids // [meta, grids, rows]
    ch_images // [meta, infos, stores, fingerprints]
    job // [instances, options, code]

    main:
    // [batch, groups]; a batch without any is background
    ch_counts = ch_grids.map { meta, _grids, rows -> [meta.id, groupsOf(rows).size()] }
    ch_background = ch_grids.filter { _meta, _grids, rows -> !groupsOf(rows) }.map { meta, _grids, _rows -> [meta, []] }
    ch_unlabelled = ch_background.filter { meta, _blocks -> hasObjects(meta, job.instances) }
    // [meta, blocks of labels]
    ch_whole = groupByBatch(ch_blocks.map { meta, _group, blocks -> [meta, blocks] }, ch_counts).mix(ch_background)

    ch_labelled = ch_blocks.filter { meta, _group, _blocks -> hasObjects(meta, job.instances) && !isSeparated(meta, job.instances) }
    ch_object_grids = ch_grids.filter { meta, _grids, _rows -> !isSeparated(meta, job.instances) }
    ch_separating = channel.empty()
    if (job.instances in ['border_core', 'watershed']) {
        SEPARATE(
            ch_whole.filter { meta, _blocks -> isSeparated(meta, job.instances) },
            ch_grids.filter { meta, _grids, _rows -> isSeparated(meta, job.instances) },
            job,
        )
        ch_labelled = ch_labelled.mix(SEPARATE.out.ch_separated)
        ch_object_grids = ch_object_grids.mix(SEPARATE.out.ch_id_grids)
        ch_separating = SEPARATE.out.ch_records
    }

    ch_of_group = ch_labelled
        .combine(ch_object_grids, by: 0)
        .combine(ch_images, by: 0)
        .map { meta, group, blocks, grids, rows, infos, stores, prints -> [meta, group, blocks, rows, grids, infos, stores, prints] }
    LABEL_BLOCKS(ch_of_group, job.options.label, job.code.label_blocks)

    ch_components = groupByBatch(LABEL_BLOCKS.out.components, ch_counts)
        .mix(ch_unlabelled)
        .join(ch_object_grids)
        .join(ch_images)
        .map { meta, components, grids, _rows, infos, _stores, _prints -> [meta, components, grids, infos] }
    LINK_OBJECTS(ch_components, job.options.link, job.code.link_objects)

    ch_tables = ch_labelled
        .combine(ch_object_grids, by: 0)
        .combine(LINK_OBJECTS.out.luts, by: 0)
        .combine(LINK_OBJECTS.out.objects, by: 0)
        .map { meta, group, blocks, grids, rows, luts, _linked, summaries, _tasks ->
            [meta, group, blocks, rows, grids, ofBlocks(luts, blocks), summaries]
        }
    RELABEL_BLOCKS(ch_tables, job.options.label, job.code.relabel_blocks)

    // [meta, blocks of instances, their summaries]
    ch_instances = groupByBatch(RELABEL_BLOCKS.out.blocks, ch_counts)
        .mix(ch_unlabelled)
        .join(LINK_OBJECTS.out.objects)
        .map { meta, blocks, _linked, summaries, _tasks -> [meta, blocks, summaries] }
    ch_with = ch_whole
        .join(ch_instances)
        .map { meta, blocks, instances, summaries -> [meta, meta.start == 'analyze' ? instances : blocks + instances, summaries] }
    ch_without = ch_whole
        .filter { meta, _blocks -> !hasObjects(meta, job.instances) }
        .map { meta, blocks -> [meta, blocks, []] }
    ch_composed = ch_with
        .mix(ch_without)
        .join(ch_grids)
        .map { meta, blocks, summaries, grids, _rows -> [meta, blocks, grids, summaries] }
    COMPOSE_STORE(ch_composed, job.code.compose_store)

    ch_stores = COMPOSE_STORE.out.store
    ch_objects = LINK_OBJECTS.out.objects
    ch_files = COMPOSE_STORE.out.info.mix(COMPOSE_STORE.out.pictures)
    ch_records = ch_separating.mix(LABEL_BLOCKS.out.record, LINK_OBJECTS.out.record, RELABEL_BLOCKS.out.record, COMPOSE_STORE.out.record)

    emit:
    ch_stores // [meta, label stores]
    ch_object_grids // [meta, grids, rows]
    ch_objects // [meta, tables of objects, their summaries, table of tasks]
    ch_files
    ch_records
}
