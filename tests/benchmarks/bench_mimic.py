"""MIMIC features from generated lab rows: seconds and peak memory by number of rows, against pandas where pandas can hold them. One JSON line a job.

Each job runs in a process of its own, which is timed and weighed whole but for the imports. Ours is `read_mimic` from files to cohort; pandas makes the
table of labs alone, by the same rules, and both must agree. "plain" pandas reads whole tables, "tuned" only the columns that it needs. Ratios are pandas' time
by ours; `linear` is the time per row by that of the size before (1: linear, less: the fixed part still shows).
"""
import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb
import pandas as pd

from fusion_nb.data.mimiciv import LABS, read_mimic

ROWS_PER_STAY = 300
UNITS = {"INR(PT)": "''", "Hemoglobin": "'g/dL'", "Lactate": "'mmol/L'"}


def generate(folder: Path, rows: int, form: str) -> None:
    """Tables in the original columns; one lab event of five is of a chosen lab, one of four names no admission, some units differ."""
    place, stays = folder/"hosp", rows // ROWS_PER_STAY
    place.mkdir(parents=True)
    con = duckdb.connect(config={"memory_limit": "1500MB", "preserve_insertion_order": "false", "temp_directory": str(folder)})

    def write(table, sql):
        if form == "parquet": return con.execute(f"COPY ({sql}) TO '{place/table}.parquet' (FORMAT parquet)")
        con.execute(f"COPY ({sql}) TO '{place/table}.csv' (FORMAT csv, HEADER)")
        subprocess.run(["gzip", "-1", f"{place/table}.csv"], check=True)  # faster than DuckDB's own
    write("patients", f"SELECT i AS subject_id, CASE WHEN i % 2 = 0 THEN 'F' ELSE 'M' END AS gender, 20 + i % 70 AS anchor_age, 2150 AS anchor_year, "
                      f"CASE WHEN i % 9 = 0 THEN DATE '2152-01-01' END AS dod FROM range({stays // 2 + 1}) t(i)")
    write("admissions", f"SELECT i // 2 AS subject_id, 1000000 + i AS hadm_id, TIMESTAMP '2150-01-01' + INTERVAL 30 DAY * (i % 2) AS admittime, "
                        f"TIMESTAMP '2150-01-09' + INTERVAL 30 DAY * (i % 2) AS dischtime, 'URGENT' AS admission_type, 'CLINIC REFERRAL' AS admission_location, "
                        f"'Other' AS insurance, 'ENGLISH' AS language, 'SINGLE' AS marital_status, 'WHITE' AS race, CAST(i % 20 = 0 AS INTEGER) AS hospital_expire_flag "
                        f"FROM range({stays}) t(i)")
    write("diagnoses_icd", f"SELECT (i // 10) // 2 AS subject_id, 1000000 + i // 10 AS hadm_id, i % 10 AS seq_num, "
                           f"(['4280', '1749', '25000', '4019', '5849', '0389', '2724', '53081', 'V4581', '2859'])[1 + i % 10] AS icd_code, 9 AS icd_version "
                           f"FROM range({stays * 10}) t(i)")
    write("prescriptions", f"SELECT 1000000 + i // 20 AS hadm_id, (['Heparin', 'Vancomycin', 'Senna', 'Morphine Sulfate'])[1 + i // 13 % 4] AS drug, 'IV' AS route "
                           f"FROM range({stays * 20}) t(i)")
    labels = ", ".join(f"({i}, '{lab}', {UNITS.get(lab, chr(39) + 'mg/dL' + chr(39))})" for i, lab in enumerate(LABS))
    con.execute(f"CREATE TABLE labs AS SELECT * FROM (VALUES {labels}) t(itemid, label, unit)")
    write("d_labitems", "SELECT itemid, label, 'Blood' AS fluid, 'Chemistry' AS category FROM labs UNION ALL "
                        "SELECT i, 'Other ' || i, 'Blood', 'Chemistry' FROM range(100, 168) t(i)")
    write("labevents", f"""
        SELECT i AS labevent_id, stay // 2 AS subject_id, CASE WHEN i % 4 > 0 THEN 1000000 + stay END AS hadm_id, i // 7 AS specimen_id, e.itemid,
               'P' || (i % 1000) AS order_provider_id, TIMESTAMP '2150-01-01' + INTERVAL 30 DAY * (stay % 2) + INTERVAL 1 MINUTE * CAST(hash(i, 1) % 14000 AS BIGINT) AS charttime,
               TIMESTAMP '2150-01-01' + INTERVAL 30 DAY * (stay % 2) + INTERVAL 1 MINUTE * CAST(hash(i, 1) % 14000 + 90 AS BIGINT) AS storetime, CAST(x AS VARCHAR) AS value, x AS valuenum,
               CASE WHEN i % 1000 = 1 THEN 'umol/L' ELSE coalesce(unit, 'mEq/L') END AS valueuom, 1.5 AS ref_range_lower, 10.5 AS ref_range_upper,
               CASE WHEN x > 10 THEN 'abnormal' END AS flag, 'ROUTINE' AS priority, NULL AS comments
        FROM (SELECT i, i // {ROWS_PER_STAY} AS stay, CASE WHEN hash(i, 2) % 5 = 0 THEN hash(i, 3) % {len(LABS)} ELSE 100 + hash(i, 3) % 68 END AS itemid,
                     round(hash(i, 4) % 2000 / 100.0, 1) AS x FROM range({stays * ROWS_PER_STAY}) t(i)) e LEFT JOIN labs USING (itemid)""")


def ours(folder: Path) -> pd.DataFrame:
    table = read_mimic(folder, icd=None, cache=folder/"cache").cohort.table.set_index("case_id")
    return table[[f"{lab} {kind}" for lab in LABS for kind in ("mean", "min", "max")]]


def with_pandas(folder: Path, tuned: bool) -> pd.DataFrame:
    """The labs by the same rules: units by majority, events without an admission by their time."""
    def read(name, columns, **kinds):
        path = next((folder/"hosp").glob(f"{name}.*"))
        if path.suffix == ".parquet": return pd.read_parquet(path, columns=columns if tuned else None)
        return pd.read_csv(path, usecols=columns, dtype=kinds) if tuned else pd.read_csv(path, low_memory=False)
    items = read("d_labitems", ["itemid", "label"])
    items = items[items["label"].isin(LABS)]
    stays = read("admissions", ["subject_id", "hadm_id", "admittime", "dischtime"])
    stays = stays.assign(admittime=pd.to_datetime(stays["admittime"]), dischtime=pd.to_datetime(stays["dischtime"])).sort_values("admittime")
    events = read("labevents", ["subject_id", "hadm_id", "itemid", "charttime", "valuenum", "valueuom"], valueuom="category")
    events = events[events["itemid"].isin(items["itemid"]) & events["valuenum"].notna()].merge(items, on="itemid")
    events["valueuom"] = events["valueuom"].astype(object).fillna("")
    counts = events.groupby(["itemid", "valueuom"]).size().reset_index(name="n").sort_values("n").drop_duplicates("itemid", keep="last")
    events = events.merge(counts[["itemid", "valueuom"]], on=["itemid", "valueuom"])
    lost = events[events["hadm_id"].isna()].drop(columns="hadm_id")
    lost = lost.assign(charttime=pd.to_datetime(lost["charttime"]).astype(stays["admittime"].dtype)).sort_values("charttime")
    found = pd.merge_asof(lost, stays, left_on="charttime", right_on="admittime", by="subject_id")
    found = found[found["charttime"] <= found["dischtime"]]
    columns = ["hadm_id", "label", "valuenum"]
    every = pd.concat([events.loc[events["hadm_id"].notna(), columns], found[columns]])
    table = every.groupby(["hadm_id", "label"])["valuenum"].agg(["mean", "min", "max"]).unstack("label")
    table.columns = [f"{label} {kind}" for kind, label in table.columns]
    return table.set_axis(table.index.astype(int).astype(str), axis=0)


def job(name: str, folder: Path, out: Path) -> None:
    """Run in a process of its own: the result to a file, the figures as a line."""
    start, cpu = time.perf_counter(), time.process_time()
    table = ours(folder) if name == "ours" else with_pandas(folder, name == "tuned")
    figures = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    table.to_parquet(out)
    print(json.dumps({**figures, "peak_mib": peak_mib(), "stays": len(table)}))


def peak_mib() -> float:
    """Of this process alone: Linux hands the greatest memory of the parent down to ru_maxrss."""
    status = Path("/proc/self/status")
    if not status.exists(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024


def measure(name: str, folder: Path, times: int) -> dict:
    out, command = folder/f"{name}.parquet", [sys.executable, __file__, "--job", name, "--folder", str(folder)]
    runs = []
    for _ in range(times):
        for old in (folder/"cache").glob("*.parquet"): old.unlink()
        runs.append(json.loads(subprocess.run([*command, "--out", str(out)], check=True, capture_output=True, text=True).stdout))
    return {"tool": name, **min(runs, key=lambda run: run["seconds"]), "peak_mib": max(run["peak_mib"] for run in runs)}


def same(folder: Path, name: str) -> bool:
    mine, theirs = (pd.read_parquet(folder/f"{n}.parquet").sort_index() for n in ("ours", name))
    pd.testing.assert_frame_equal(mine.loc[theirs.index, theirs.columns], theirs, check_names=False, rtol=1e-9)
    return True


def main(sizes: list, forms: list, largest_pandas: int, times: int) -> None:
    for form in forms:
        before = None
        for rows in sizes:
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                generate(folder, rows, form)
                line = {"form": form, "rows": rows, **measure("ours", folder, times)}
                per_row = line["seconds"] / rows
                if before: line["linear"] = per_row / before
                before = per_row
                for name in ("plain", "tuned") if rows <= largest_pandas else ():
                    peer = measure(name, folder, times)
                    line.update({f"{name}_seconds": peer["seconds"], f"{name}_peak_mib": peer["peak_mib"], f"ratio_{name}": peer["seconds"] / line["seconds"],
                                 f"ratio_{name}_cpu": peer["cpu_seconds"] / line["cpu_seconds"], "agree": same(folder, name)})
            print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in line.items()}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help="20 million rows too (minutes, 3 GB of disk)")
    parser.add_argument("--rows", type=int, nargs="+", default=[500_000, 2_000_000], help="numbers of lab rows")
    parser.add_argument("--forms", nargs="+", default=["parquet", "csv.gz"], choices=["parquet", "csv.gz"], help="forms of the files")
    parser.add_argument("--pandas", type=int, default=2_000_000, metavar="ROWS", help="up to so many rows pandas is asked too (10 million: 6 GB of memory)")
    parser.add_argument("--times", type=int, default=1, help="runs of each job; the fastest counts, and the greatest memory")
    parser.add_argument("--job", choices=["ours", "plain", "tuned"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job: job(given.job, given.folder, given.out)
    else: main([*given.rows, 20_000_000] if given.large else given.rows, given.forms, given.pandas, given.times)
