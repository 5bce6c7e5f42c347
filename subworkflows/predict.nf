// Plans and stores -> blocks of semantic labels. A block is stitched as soon as its own pieces are there. Several models are
// averaged once all of them have seen a batch.
include { PREDICT_TILES         } from '../modules/predict_tiles/main'
include { STITCH_BLOCKS         } from '../modules/stitch_blocks/main'
include { AVERAGE_MODELS        } from '../modules/average_models/main'
include { COMPOSE_PROBABILITIES } from '../modules/compose_probabilities/main'
include { predictionTasks; stitchRows; groupByStitch; groupByBatch; groupsOf; byGroup; withoutModel } from '../functions/channels'

workflow PREDICT {
    take:
    ch_plans // [meta, plans, tiles, rows of blocks], of several models for each; meta then bears the model's number
    ch_images // [meta, infos, stores, fingerprints]
    packed // the packages in the order of the models
    job // [models, probabilities: whether they are published, options, code]

    main:
    ch_tasks = ch_plans
        .map { meta, plans, tiles, _rows -> [withoutModel(meta), meta, plans, tiles] }
        .combine(ch_images, by: 0)
        .combine(packed.map { packages -> [packages] })
        .flatMap { _batch, meta, plans, tiles, infos, stores, prints, packages ->
            predictionTasks(tiles).collect { number, need ->
                [meta, number, need, plans, tiles, infos, stores, prints, packages[(meta.member ?: 1) - 1]]
            }
        }
    // [meta, sample, block, group, pieces of the group]
    ch_blocks = ch_plans.flatMap { meta, _plans, _tiles, rows ->
        stitchRows(rows).collect { row -> [meta, row.sample, row.block, row.group, row.n_pieces] }
    }

    PREDICT_TILES(ch_tasks, job.code.predict_tiles)

    ch_groups = groupByStitch(PREDICT_TILES.out.pieces, ch_blocks)
        .combine(ch_plans.map { meta, plans, _tiles, rows -> [meta, plans, rows] }, by: 0)
    STITCH_BLOCKS(ch_groups, job.code.stitch_blocks)

    // Per batch the blocks of probabilities and the plans, of all models; a batch without any block is background.
    several = job.models.size() > 1
    ch_models = ch_plans
        .map { meta, plans, _tiles, rows -> [groupKey(withoutModel(meta), job.models.size() ?: 1), plans, groupsOf(rows).size()] }
        .groupTuple()
        .map { key, plans, groups -> [key.getGroupTarget(), plans.flatten().sort { plan -> plan.name }, groups.sum()] }
        .filter { _meta, _plans, _groups -> several || job.probabilities }
    ch_probable = groupByBatch(
        STITCH_BLOCKS.out.probabilities.map { meta, blocks -> [withoutModel(meta), blocks] },
        ch_models.map { meta, _plans, groups -> [meta.id, groups] },
    )
        .mix(ch_models.filter { _meta, _plans, groups -> !groups }.map { meta, _plans, _groups -> [meta, []] })
        .join(ch_models)
        .map { meta, blocks, plans, _groups -> [meta, blocks, plans] }

    AVERAGE_MODELS(several ? ch_probable : channel.empty(), job.models.size(), job.options.average, job.code.average_models)
    COMPOSE_PROBABILITIES(several ? channel.empty() : ch_probable, job.code.compose_probabilities)

    ch_first = ch_plans
        .filter { meta, _plans, _tiles, _rows -> meta.member == 1 }
        .map { meta, _plans, _tiles, rows -> [withoutModel(meta), rows] }
    ch_averaged = AVERAGE_MODELS.out.blocks.join(ch_first).flatMap { meta, blocks, rows -> byGroup(meta, blocks, rows) }
    ch_stitched = several ? ch_averaged : STITCH_BLOCKS.out.blocks
    ch_records = PREDICT_TILES.out.record.mix(STITCH_BLOCKS.out.record, AVERAGE_MODELS.out.record, COMPOSE_PROBABILITIES.out.record)

    emit:
    ch_stitched // [meta, group, blocks of the group]
    ch_records
}
