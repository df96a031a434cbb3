#!/usr/bin/env bash
# A morning's work: two sessions of one specimen, from picks to particles for RELION and cryoSPARC.
#
#     bash examples/morning.sh [FOLDER]     # about two minutes on one core
#
# The particles are simulated, 15 % of them junk and 8 % picked twice. With your own, leave out the first two
# commands, the last line of PARAMETERS (it makes small sets quick), and --min-map-correlation without a map.
set -euo pipefail
mkdir -p "${1:-morning}" && cd "${1:-morning}"
PARAMETERS=(--mask-diameter 290 --jobs 1
    --align-classes 9 --align-batches 60 --align-iterations 4 --classes 16)

# Two sessions, of other pixels and boxes
sklearn-cryoem simulate --session --particles 300 --box 40 --snr 0.2 --junk 0.15 --picked-twice 0.08 --seed 1 -o first
sklearn-cryoem simulate --session --particles 200 --box 48 --snr 0.2 --junk 0.15 --picked-twice 0.08 --seed 2 -o second

# Classes of the first; the particles of the second in the same classes, as soon as they come
sklearn-cryoem classify first/particles.star -o classes "${PARAMETERS[@]}"
sklearn-cryoem assign classes second/particles.star -o assigned --jobs 1

# Both together, cleaned in rounds. What left and why is in cleaned/rejected.csv
sklearn-cryoem merge classes assigned -o both.star
sklearn-cryoem clean both.star -o cleaned --rescale --rounds 2 "${PARAMETERS[@]}"

# Look at cleaned/report.html: each class, how it compares with the map, and how it would be judged
sklearn-cryoem report cleaned --map first/map.mrc
# Which particles have moved since the first classes: compared/pairs.png and moved.csv
sklearn-cryoem compare classes cleaned -o compared

# Classes that are suggested and look like the map; each particle once; common views no more than 40 times
sklearn-cryoem select cleaned --keep-suggested --min-map-correlation 0.6 --min-distance 100 --max-per-class 40 \
    --averages chosen.mrcs -o good.star
sklearn-cryoem convert good.star good.cs # for cryoSPARC
