// The windows of one task's tiles, each computed once -> one piece per tile and block.
// torch takes and gives back large buffers all the time: kept by the allocator they cost no page faults.
// Threads that wait for the others go to sleep soon: on a machine that is shared they would burn what the others need.
include { titleOf; memberFlag; memberMark } from '../../functions/channels'
include { memoryFor; timeFor } from '../../functions/resources'

process PREDICT_TILES {
    tag "${titleOf(meta)} ${task_number}"
    label 'process_gpu'
    label 'process_torch'
    cpus { need.threads }
    memory { memoryFor(need.memory, task) }
    time { timeFor(need.seconds ?: 0, task) }

    input:
    tuple val(meta), val(task_number), val(need), path(plans), path(tiles), path(infos), path(stores, stageAs: 'stores/*'), val(_fingerprints), path(packed, stageAs: '_package')
    val _code

    output:
    tuple val(meta), path('*/*.piece'), emit: pieces
    path "${meta.id}/${meta.id}.predict_tiles.${memberMark(meta)}${task_number}.json", emit: record

    script:
    """
    export OMP_NUM_THREADS=${task.cpus} MALLOC_MMAP_THRESHOLD_=2000000000 MALLOC_TRIM_THRESHOLD_=2000000000 GOMP_SPINCOUNT=1000
    predict_tiles.py --batch ${meta.id} ${memberFlag(meta)} --task ${task_number} --package _package
    """

    stub:
    """
    for sample in ${meta.samples.join(' ')}; do
        mkdir -p \$sample
        touch \$sample/\$sample.t0.b0.piece
    done
    mkdir -p ${meta.id}
    touch ${meta.id}/${meta.id}.predict_tiles.${memberMark(meta)}${task_number}.json
    """
}
