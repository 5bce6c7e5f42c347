// The last words of a run: where the report is, or what failed and what to do.

def closingText(run, outdir) {
    def report = file("${outdir}/report.html")
    def lines = run.success
        ? ["Done in ${run.duration}."]
        : ["Failed after ${run.duration}."] + failure(run.errorReport ?: '') + ['Mend it and run the same command again with -resume: finished work is kept.']
    def ignored = run.stats.ignoredCount ? ["${run.stats.ignoredCount} tasks failed and were left out; the report names their samples."] : []
    def where = report.exists() && (run.success || ignored) ? ["Report: ${report}"] : []
    return (lines + ignored + where).join('\n')
}

// Nextflow's report of the first failed task -> the task, its own last words, and its folder.
def failure(text) {
    def task = text.find(/process > '([^']+)'/) { _all, name -> name }
    def folder = text.find(/(?s)Work dir:\s*(\S+)/) { _all, path -> path }
    if (!task) {
        return [text.readLines().find { line -> line.trim() } ?: 'See .nextflow.log.']
    }
    def log_file = folder ? file("${folder}/.command.err") : null
    def said = log_file?.exists() ? log_file.readLines().takeRight(12) : []
    return ["Task ${task}:"] + said.collect { line -> "  ${line}" } + (folder ? ["Its folder: ${folder}"] : [])
}
