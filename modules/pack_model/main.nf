// The only task that opens a checkpoint; everything after it reads the package.
process PACK_MODEL {
    label 'process_single'

    input:
    tuple path(model, stageAs: '_model/*'), val(_fingerprint)
    val options
    val _code

    output:
    path 'model', emit: packed
    path 'pack_model/pack_model.pack_model.json', emit: record

    script:
    """
    env -u nnUNet_extTrainer pack_model.py --model _model/* --out model ${options}
    """

    stub:
    """
    mkdir -p model pack_model
    echo '{"format": 1, "files": {}}' > model/manifest.json
    touch pack_model/pack_model.pack_model.json
    """
}
