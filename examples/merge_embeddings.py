"""Merge the Parquet files of a job array into one, a batch at a time.

python examples/merge_embeddings.py parts embeddings.parquet
"""

import sys
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq


def main(folder: str, output: str) -> None:
    paths = sorted(Path(folder).glob("part-*.parquet"), key=lambda path: int(path.stem.split("-")[1]))
    parts = ds.dataset([str(path) for path in paths], format="parquet")
    with pq.ParquetWriter(output, parts.schema) as writer:
        for batch in parts.to_batches():
            writer.write_batch(batch)
    print(f"{output}: {parts.count_rows():,} sequences of {len(paths)} parts")


if __name__ == "__main__":
    main(*sys.argv[1:])
