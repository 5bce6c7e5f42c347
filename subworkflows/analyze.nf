// Label stores and tables of objects -> measures, tables, charts, label files.
include { MEASURE_OBJECTS  } from '../modules/measure_objects/main'
include { TABULATE_OBJECTS } from '../modules/tabulate_objects/main'
include { COMPARE_SAMPLES  } from '../modules/compare_samples/main'
include { EXPORT_LABELS    } from '../modules/export_labels/main'
include { measureTasks; groupByBatch; inOrder } from '../functions/channels'

workflow ANALYZE {
    take:
    ch_stores // [meta, label stores]
    ch_objects // [meta, tables of objects, their summaries, table of tasks]
    ch_grids // [meta, grids, rows] of the labels
    ch_object_grids // [meta, grids, rows] of the objects
    ch_images // [meta, infos, stores, fingerprints]
    samples
    job // [export, options, code]

    main:
    // [meta, tables of objects, summaries, table of tasks, grids, infos, stores, fingerprints, label stores]
    ch_staged = ch_objects
        .join(ch_object_grids.map { meta, grids, _rows -> [meta, grids] })
        .join(ch_images)
        .join(ch_stores.map { meta, labels -> [meta, inOrder(meta, labels)] })

    ch_tasks = ch_staged.flatMap { meta, linked, _summaries, table, grids, infos, stores, prints, labels ->
        measureTasks(table).collect { number, need -> [meta, number, need, linked, table, grids, infos, stores, prints, labels] }
    }
    ch_counts = ch_objects.map { meta, _linked, _summaries, table -> [meta.id, measureTasks(table).size()] }
    MEASURE_OBJECTS(ch_tasks, job.options.measure, job.code.measure_objects)

    ch_measured = groupByBatch(MEASURE_OBJECTS.out.measures, ch_counts)
        .join(ch_staged)
        .map { meta, measures, linked, summaries, _table, grids, infos, stores, prints, labels ->
            [meta, measures, linked, summaries, grids, infos, stores, prints, labels]
        }
    TABULATE_OBJECTS(ch_measured, job.options.tabulate, job.code.tabulate_objects)

    ch_tables = TABULATE_OBJECTS.out.tables.map { _meta, tables, summaries -> [tables, summaries] }.flatten()
    COMPARE_SAMPLES(ch_tables.collect(), samples, job.options.compare, job.code.compare_samples)

    ch_exported = ch_stores
        .filter { _meta, _labels -> job.export != 'none' }
        .join(ch_grids)
        .join(ch_images)
        .map { meta, labels, grids, _rows, infos, _stores, _prints -> [meta, grids, infos, inOrder(meta, labels)] }
    EXPORT_LABELS(ch_exported, job.options.export, job.code.export_labels)

    ch_summaries = TABULATE_OBJECTS.out.tables.map { _meta, _tables, summaries -> summaries }
    ch_charts = TABULATE_OBJECTS.out.files.mix(COMPARE_SAMPLES.out.charts).flatten().filter { file -> file.name.endsWith('.svg') }
    ch_files = ch_summaries.mix(TABULATE_OBJECTS.out.gallery, ch_charts, COMPARE_SAMPLES.out.cohort)
    ch_records = MEASURE_OBJECTS.out.record.mix(TABULATE_OBJECTS.out.record, COMPARE_SAMPLES.out.record, EXPORT_LABELS.out.record)

    emit:
    ch_files
    ch_records
}
