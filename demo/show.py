"""Say where the demo's records and overlays are, and what the first of them hold."""

import sys
from pathlib import Path

import duckdb

import camray


def main() -> None:
    out = Path(sys.argv[1]).resolve()
    records = camray.open_records(str(out))  # noqa: F841 - DuckDB reads it by name
    query = (
        "select label, count(*) as images, round(avg(correct::int), 3) as accuracy, "
        "round(avg(heat_corner_mass), 3) as corner_mass from records group by label order by label"
    )
    print(duckdb.sql(query))
    overlay = duckdb.sql(
        "select overlay_path from records where overlay_path is not null and not correct "
        "order by confidence desc"
    ).fetchall()
    print(f"records:   {out / 'records'}")
    print(f"overlays:  {out / 'overlays'}")
    if overlay:
        print(f"a mistake: {out / overlay[0][0]}")
    print("\nAsk your own question:\n")
    print(
        f'.venv/bin/python -c "import duckdb, camray; '
        f"records = camray.open_records('{out}'); "
        f"print(duckdb.sql('select member, predicted_label, confidence, heat_corner, overlay_path "
        f"from records where not correct order by confidence desc limit 5'))\""
    )


if __name__ == "__main__":
    main()
