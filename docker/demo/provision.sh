# Sets up the federation of compose.demo.yaml. People at four places give these commands: docs/containers.md.
set -eu
sites="aalborg bergen coimbra"

fedbrainlm cohort simulate /tmp/cohorts --sites 3 --participants 24 --minutes 3
fedbrainlm federation init /state/federation --name demo --host coordinator
for site in $sites; do
    cp -r "/tmp/cohorts/$site/." "/cohorts/$site"
    fedbrainlm site init "/sites/$site" --name "$site" --cohort /cohort
    # No proxy leads to another container. Simulated people are few, and need no protection: real ones keep min_group and min_change.
    sed -i 's/executor: here/executor: elsewhere/; s/health: null/health: 127.0.0.1:9095/; s/studies: \[\]/studies: [demo]/
            s/proxy: null  /proxy: direct/; s/min_group: 5/min_group: 1/; s/min_change: 10/min_change: 1/' "/sites/$site/site.yaml"
    fedbrainlm federation add-site /state/federation "/sites/$site/$site.bundle.json"
done
fedbrainlm federation package /state/federation --out /state/demo.join.json
fedbrainlm study build /demo/study.yaml --out /state/demo.fab
for site in $sites; do
    fedbrainlm site join "/sites/$site/site.yaml" /state/demo.join.json --by demo --yes
    fedbrainlm site approve "/sites/$site/site.yaml" /state/demo.fab --by demo
done
