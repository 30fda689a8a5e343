// Which classes of many to show side by side. `confusions` are `{true, predicted, count}`, the most frequent first.

/** Classes of the most frequent pairs, until `room` of them are found; ascending. */
export function mostConfused(confusions, room) {
  return gather(confusions, room, []);
}

/** A class and those it is confused with most, at most `room`; ascending. */
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
