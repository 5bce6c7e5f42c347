// Plans and stores -> blocks of semantic labels. A block is stitched as soon as its own pieces are there.
include { PREDICT_TILES } from '../modules/predict_tiles/main'
include { STITCH_BLOCKS } from '../modules/stitch_blocks/main'
include { predictionTasks; stitchRows; groupByStitch } from '../functions/channels'

workflow PREDICT {
    take:
    ch_plans // [meta, plans, tiles, rows of blocks]
    ch_images // [meta, infos, stores, fingerprints]
    packed
    code // [script: digest]

    main:
    ch_tasks = ch_plans
        .join(ch_images)
        .flatMap { meta, plans, tiles, _rows, infos, stores, prints ->
            predictionTasks(tiles).collect { number, need -> [meta, number, need, plans, tiles, infos, stores, prints] }
        }
    // [batch, sample, block, group, pieces of the group]
    ch_blocks = ch_plans.flatMap { meta, _plans, _tiles, rows ->
        stitchRows(rows).collect { row -> [meta.id, row.sample, row.block, row.group, row.n_pieces] }
    }

    PREDICT_TILES(ch_tasks, packed, code.predict_tiles)

    ch_groups = groupByStitch(PREDICT_TILES.out.pieces, ch_blocks)
        .combine(ch_plans.map { meta, plans, _tiles, rows -> [meta, plans, rows] }, by: 0)
    STITCH_BLOCKS(ch_groups, code.stitch_blocks)

    ch_stitched = STITCH_BLOCKS.out.blocks
    ch_records = PREDICT_TILES.out.record.mix(STITCH_BLOCKS.out.record)

    emit:
    ch_stitched // [meta, group, blocks of the group]
    ch_records
}
