// The only task that opens a checkpoint; everything after it reads the package.
include { largestCheckpoint; memoryFor; timeFor } from '../../functions/resources'

process PACK_MODEL {
    label 'process_single'
    label 'process_torch'
    memory { memoryFor(2_000_000_000 + 4 * largestCheckpoint(model), task) }
    time { timeFor(largestCheckpoint(model) / 1e7, task) }

    input:
    tuple val(member), path(model, stageAs: '_model/*'), val(_fingerprint) // the model's number, 0 for the only one
    val options
    val _code

    output:
    tuple val(member), path('model'), emit: packed
    path "pack_model/pack_model.pack_model${member ? ".m${member}" : ''}.json", emit: record

    script:
    """
    env -u nnUNet_extTrainer pack_model.py --model _model/* --out model ${member ? "--member ${member}" : ''} ${options}
    """

    stub:
    """
    mkdir -p model pack_model
    echo '{"format": 1, "files": {}}' > model/manifest.json
    touch pack_model/pack_model.pack_model${member ? ".m${member}" : ''}.json
    """
}
