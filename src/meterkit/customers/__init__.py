"""Operations on customers: state, links, overrides, history, grants, corrections, deletion."""
