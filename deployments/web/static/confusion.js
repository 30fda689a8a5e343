// Selects the classes to show in the matrix. `confusions` are `{true, predicted, count}`, the most frequent first.

/** Classes of the most frequent pairs, at most `room` classes; ascending. */
export function mostConfused(confusions, room) {
  return gather(confusions, room, []);
}

/** A class and the classes it is confused with most often, at most `room` classes; ascending. */
export function relatedTo(own, confusions, room) {
  return gather(confusions.filter((one) => one.true === own || one.predicted === own), room, [own]);
}

function gather(confusions, room, first) {
  const found = new Set(first);
  for (const { true: shown, predicted } of confusions) {
    const fresh = [shown, predicted].filter((one) => !found.has(one));
    if (found.size + fresh.length <= room) fresh.forEach((one) => found.add(one));
    if (found.size === room) break;
  }
  return [...found].sort((a, b) => a - b);
}
