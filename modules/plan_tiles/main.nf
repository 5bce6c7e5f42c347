// Arithmetic only: windows, tiles, blocks and what each task needs.
include { titleOf; memberFlag; memberMark } from '../../functions/channels'

process PLAN_TILES {
    tag "${titleOf(meta)}"
    label 'process_single'

    input:
    tuple val(meta), path(infos), path(packed, stageAs: '_package'), path(probed) // the last one only for a GPU: what fits it
    val options
    val _code

    output:
    tuple val(meta), path('*/*.plan.json'), path("${meta.id}/${meta.id}.tiles.csv"), path("${meta.id}/${meta.id}.blocks.csv"), emit: plan
    tuple val(meta), path('*/*.grid.json'), path("${meta.id}/${meta.id}.blocks.csv"), emit: grid
    path "${meta.id}/${meta.id}.plan_tiles.${memberMark(meta)}json", emit: record

    script:
    """
    plan_tiles.py --batch ${meta.id} ${memberFlag(meta)} --package _package ${probed ? "--probed ${probed}" : ''} ${options} *.image.json
    """

    stub:
    """
    mkdir -p ${meta.id}
    echo sample,tile,task,windows,memory_bytes,threads,seconds > ${meta.id}/${meta.id}.tiles.csv
    echo sample,block,group,n_pieces > ${meta.id}/${meta.id}.blocks.csv
    for sample in ${meta.samples.join(' ')}; do
        mkdir -p \$sample
        touch \$sample/\$sample.${memberMark(meta)}plan.json \$sample/\$sample.grid.json
        echo \$sample,0,0,1,100000000,1,1 >> ${meta.id}/${meta.id}.tiles.csv
        echo \$sample,0,0,${meta.samples.size()} >> ${meta.id}/${meta.id}.blocks.csv
    done
    touch ${meta.id}/${meta.id}.plan_tiles.${memberMark(meta)}json
    """
}
