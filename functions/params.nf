// Params as nextflow_schema.json describes them: the help text, every fault of a command line in one message, and the
// flags of a script. Pure functions.

def readJson(path) {
    return new groovy.json.JsonSlurper().parseText(path.text)
}

def properties(schema) {
    return schema['$defs'].values().inject([:]) { all, group -> all + group['properties'] }
}

// Names with '-' are twins that Nextflow adds to the camelCase form of the same param.
def paramFaults(values, schema) {
    def known = properties(schema)
    def required = schema['$defs'].values().collectMany { group -> group['required'] ?: [] }
    def missing = required
        .findAll { name -> values[name] == null }
        .collect { name -> "--${name} is missing: ${known[name].description}" }
    def unknown = values.keySet()
        .findAll { name -> !known.containsKey(name) && !name.contains('-') }
        .collect { name -> "--${name} is not a param${nearest(name, known.keySet())}" }
    def wrong = known
        .findAll { name, _rule -> values[name] != null }
        .collect { name, rule -> valueFault(name, values[name], rule) }
        .findAll { fault -> fault }
    return missing + unknown + wrong
}

// What is wrong with params only in company of others. A samplesheet alone can name labels that need no model;
// CHECK_INPUT sees whether every row does.
def mutualFaults(values, schema) {
    def job = values.workflow
    def segmenting = !(job in ['convert', 'evaluate'])
    def sheet = values.input && values.input.toString().toLowerCase().endsWith('.csv')
    def modelless = segmenting && !values.model && values.input && !sheet
    def dangling = values.cleanup && values.publish_dir_mode.toString().endsWith('link') && values.publish_dir_mode != 'link'
    def idle = (idleGroups(schema, job) + (segmenting ? [] : ['flip', 'intensity', 'stop_after', 'postprocessing', 'save_probabilities', 'save_patches', 'instances', 'core_label', 'border_label', 'seed_distance']))
        .findAll { name -> changed(values, schema, name) }
        .collect { name -> "--${name} has no effect with --workflow ${job}" }
    def unread = [core_label: 'border_core', border_label: 'border_core', seed_distance: 'watershed']
        .findAll { name, method -> segmenting && values.instances != method && changed(values, schema, name) }
        .collect { name, method -> "--${name} has no effect without --instances ${method}" }
    def gpuless = ['cpu_fallback', 'gpu_memory_budget']
        .findAll { name -> values.device != 'cuda' && changed(values, schema, name) }
        .collect { name -> "--${name} has no effect without --device cuda" }
    def ambiguous = values.postprocessing == 'model' && values.model.toString().contains(';')
    return idle + unread + gpuless + limitFaults(values, schema) + (modelless ? ["--model is missing: ${properties(schema).model.description}"] : []) +
        (job == 'evaluate' && values.input && !sheet ? ['--workflow evaluate reads a samplesheet, whose column truth names what labels are compared with'] : []) +
        (ambiguous ? ['--postprocessing model is that of one model; for several name the postprocessing.json that nnU-Net found for them'] : []) +
        (dangling ? ["--cleanup would delete what the results of --publish_dir_mode ${values.publish_dir_mode} point to"] : [])
}

// Tasks are cut to --memory_budget; those that may not ask for so much would all die of it.
def limitFaults(values, schema) {
    def known = ['max_memory', 'memory_budget'].every { name -> values[name] && !valueFault(name, values[name], properties(schema)[name]) }
    return known && memoryBytes(values.max_memory) < memoryBytes(values.memory_budget)
        ? ["--max_memory ${values.max_memory} is less than --memory_budget ${values.memory_budget}, to which tasks are cut: lower --memory_budget as well"]
        : []
}

def changed(values, schema, name) {
    return values[name] != null && values[name].toString() != properties(schema)[name]['default'].toString()
}

// Params of the other workflows
def idleGroups(schema, job) {
    return ['convert', 'evaluate'].findAll { group -> group != job }.collectMany { group -> schema['$defs'][group].properties.keySet() }
}

def nearest(name, known) {
    def names = known.toList().closest(name.replaceAll(/([A-Z])/, '_$1').toLowerCase())
    return names ? "; did you mean --${names[0]}?" : ''
}

// A number on the command line arrives as a number although its param may be text.
def valueFault(name, value, rule) {
    def numeric = value.toString().isNumber()
    def fits = [
        string: !(value instanceof Boolean),
        boolean: value instanceof Boolean,
        integer: value.toString().isLong(),
        number: numeric,
    ]
    if (!fits[rule.type]) {
        return "--${name} must be ${article(rule.type)}, not '${value}'"
    }
    def number = numeric ? value.toString().toBigDecimal() : null
    def broken = [
        rule.minimum != null && number < rule.minimum ? "at least ${rule.minimum}" : null,
        rule.maximum != null && number > rule.maximum ? "at most ${rule.maximum}" : null,
        rule.exclusiveMinimum != null && number <= rule.exclusiveMinimum ? "greater than ${rule.exclusiveMinimum}" : null,
    ].findAll { text -> text }
    if (broken) {
        return "--${name} must be ${broken.join(' and ')}, not ${value}"
    }
    if (rule['enum'] && !rule['enum'].any { choice -> choice.toString() == value.toString() }) {
        return "--${name} must be one of ${rule['enum'].join(', ')}, not '${value}'"
    }
    if (rule.pattern && !value.toString().matches(rule.pattern)) {
        return "--${name} cannot be read: '${value}'. ${rule.description}"
    }
    if (value.toString() =~ /\p{Cntrl}/) {
        return "--${name} contains a control character"
    }
    return null
}

def article(type) {
    return [string: 'text', boolean: 'true or false', integer: 'a whole number', number: 'a number'][type]
}

def helpText(schema, version) {
    def sections = schema['$defs'].values().collect { group ->
        def shown = group['properties'].findAll { _name, rule -> !rule.hidden }
        def lines = shown.collect { name, rule -> "  --${name.padRight(24)}${wrapped(rule.description + facts(rule), 28)}" }
        "${group.title}\n${lines.join('\n')}"
    }
    return """Voxelmill ${version}: ${schema.description}

Usage: nextflow run main.nf --input samples.csv --model model_folder --outdir results [-profile docker|podman|apptainer]

${sections.join('\n\n')}
"""
}

def facts(rule) {
    def choices = rule['enum'] ? [rule['enum'].join('|')] : []
    def standard = rule['default'] in [null, false] ? [] : ["default: ${rule['default']}"]
    def all = choices + standard
    return all ? " [${all.join('; ')}]" : ''
}

def wrapped(text, indent) {
    def lines = text.tokenize(' ').inject(['']) { done, word ->
        def longer = "${done[-1]} ${word}".trim()
        longer.size() <= 120 - indent ? done.init() + [longer] : done + [word]
    }
    return lines.join('\n' + ' ' * indent)
}

// Values have passed their patterns, which no quote passes.
def flags(values, names) {
    return names
        .findAll { name -> values[name] != null && values[name] != false }
        .collect { name -> values[name] == true ? flag(name) : "${flag(name)} '${values[name]}'" }
        .join(' ')
}

def flag(name) {
    return "--${name.replace('_', '-')}"
}

def memoryBytes(text) {
    return (text as MemoryUnit).toBytes()
}

// What the report says of a run, as JSON: every param that can change its results, and the command that repeats it. What
// changes with -resume or with the place of the results is left out, or no report would ever be cached.
def recordedParams(values, schema, run) {
    def rules = properties(schema).findAll { name, _rule -> !['help', 'debug', 'outdir', 'publish_dir_mode'].contains(name) }
    def recorded = rules.collectEntries { name, _rule -> [name, values[name]] }
    def defaults = rules.collectEntries { name, rule -> [name, rule['default']] }
    def changed = recorded.findAll { name, value -> value != null && value.toString() != defaults[name].toString() }
    def command = changed.collect { name, value -> value == true ? "--${name}" : "--${name} '${value}'" }
    return groovy.json.JsonOutput.prettyPrint(groovy.json.JsonOutput.toJson([
        params: recorded,
        defaults: defaults,
        command: (['nextflow run main.nf'] + command + ["-profile ${run.profile}"]).join(' '),
        revision: run.commitId ?: run.manifest.version,
        profile: run.profile,
        nextflow: run.nextflow.version.toString(),
    ]))
}
