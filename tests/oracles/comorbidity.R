# Which of Quan's 31 Elixhauser groups a code belongs to, by the maps of the R package icd (Wasey, version 4.0.9.9000), written to comorbidity.json.
# Run once, in this folder: Rscript comorbidity.R FOLDER, where FOLDER holds icd9_map_quan_elix.rda and icd10_map_quan_elix.rda of the
# package's data/ (github.com/jackwasey/icd). The package lists every code that exists, not prefixes; a seeded sample of its codes is kept for each group.
suppressPackageStartupMessages(library(jsonlite))
folder <- commandArgs(TRUE)[1]
set.seed(1)
of_version <- function(name) {
  load(file.path(folder, paste0(name, ".rda")))
  groups <- lapply(get(name), as.character)
  codes <- sort(unique(unlist(lapply(groups, function(g) { own <- g[nchar(g) >= 3]; own[sample.int(length(own), min(25, length(own)))] }))))
  list(groups = names(groups), codes = codes, member = lapply(codes, function(code) which(vapply(groups, function(g) code %in% g, TRUE)) - 1))
}
out <- list(icd9 = of_version("icd9_map_quan_elix"), icd10 = of_version("icd10_map_quan_elix"), package = "icd 4.0.9.9000")
write(toJSON(out, auto_unbox = FALSE), "comorbidity.json")
