"""A pool of workers that are forked, some jobs for them, and what was counted."""

import multiprocessing

from jobs import job, kit

JOBS = [("ada", "one two three")] * 3 + [("bob", "far " * 30)] * 5 + [("eve", "")]


def told(customer: str, text: str) -> str:
    try:
        return f"{customer}: {job(customer, text)}"
    except ValueError as error:
        return f"{customer}: failed, {error}; nothing is counted"


def main() -> None:
    pool = multiprocessing.get_context("fork").Pool(3)
    for line in pool.starmap(told, JOBS, chunksize=1):
        print(line)
    pool.close()
    pool.join()
    with kit:
        for customer in ("ada", "bob", "eve"):
            meters = kit.usage(customer)["meters"]
            print(f"{customer} has used {meters['jobs']['used']} jobs, {meters['words']['used']} words")


if __name__ == "__main__":
    main()
