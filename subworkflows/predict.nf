// Plans and stores -> semantic labels. A block is stitched as soon as its own pieces are there.
include { PREDICT_TILES } from '../modules/predict_tiles/main'
include { STITCH_BLOCKS } from '../modules/stitch_blocks/main'
include { COMPOSE_STORE } from '../modules/compose_store/main'
include { predictionTasks; stitchRows; groupByStitch; groupByBatch } from '../functions/channels'

workflow PREDICT {
    take:
    ch_plans // [meta, plans, tiles, blocks, infos, stores, fingerprints]
    packed
    code // [script: digest]

    main:
    ch_tasks = ch_plans.flatMap { meta, plans, tiles, _blocks, infos, stores, prints ->
        predictionTasks(tiles).collect { number, need -> [meta, number, need, plans, tiles, infos, stores, prints] }
    }
    ch_rows = ch_plans.map { meta, _plans, _tiles, blocks, _infos, _stores, _prints -> [meta, stitchRows(blocks)] }
    // [batch, sample, block, group, pieces of the group]
    ch_blocks = ch_rows.flatMap { meta, rows -> rows.collect { row -> [meta.id, row.sample, row.block, row.group, row.n_pieces] } }
    // [batch, groups]
    ch_counts = ch_rows.map { meta, rows -> [meta.id, rows.collect { row -> row.group }.toSet().size()] }

    PREDICT_TILES(ch_tasks, packed, code.predict_tiles)

    ch_groups = groupByStitch(PREDICT_TILES.out.pieces, ch_blocks)
        .combine(ch_plans.map { meta, plans, _tiles, blocks, _infos, _stores, _prints -> [meta, plans, blocks] }, by: 0)
    STITCH_BLOCKS(ch_groups, code.stitch_blocks)

    // A batch that no window reaches is background.
    ch_unreached = ch_rows.filter { _meta, rows -> !rows }.map { meta, _rows -> [meta, []] }
    ch_stitched = groupByBatch(STITCH_BLOCKS.out.blocks, ch_counts)
        .mix(ch_unreached)
        .join(ch_plans.map { meta, plans, _tiles, _blocks, infos, _stores, _prints -> [meta, plans, infos] })
    COMPOSE_STORE(ch_stitched, code.compose_store)

    ch_stores = COMPOSE_STORE.out.store
    ch_files = COMPOSE_STORE.out.info.mix(COMPOSE_STORE.out.pictures)
    ch_records = PREDICT_TILES.out.record.mix(STITCH_BLOCKS.out.record, COMPOSE_STORE.out.record)

    emit:
    ch_stores
    ch_files
    ch_records
}
