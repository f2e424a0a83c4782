// Two answers to one prompt: which tokens of each the other has not, by Myers' shortest edit
// script ("An O(ND) Difference Algorithm", 1986). Bounded, so that two long texts that have nothing
// in common do not hold up the page.

const MOST_EDITS = 600;

/**
 * {left, right}: for each token whether it differs; `first`: index of the first that does, or -1;
 * `exact`: false where the texts are too far apart and everything after `first` counts as differing.
 */
export function difference(left, right) {
  const most = Math.min(left.length, right.length);
  let first = 0;
  while (first < most && left[first] === right[first]) first += 1;
  if (first === left.length && first === right.length) {
    return { left: [], right: [], first: -1, exact: true };
  }
  let last = 0;
  while (last < most - first && left.at(-1 - last) === right.at(-1 - last)) last += 1;
  const marks = {
    left: left.map((_, at) => at >= first && at < left.length - last),
    right: right.map((_, at) => at >= first && at < right.length - last),
  };
  const a = left.slice(first, left.length - last);
  const b = right.slice(first, right.length - last);
  const kept = common(a, b);
  for (const [x, y] of kept ?? []) {
    marks.left[first + x] = false;
    marks.right[first + y] = false;
  }
  return { ...marks, first, exact: kept !== null };
}

/** Pairs of indices of a longest common subsequence; null: more edits than we look for. */
function common(a, b) {
  const trace = [];
  let furthest = new Map([[1, 0]]);
  for (let edits = 0; edits <= Math.min(MOST_EDITS, a.length + b.length); edits += 1) {
    trace.push(new Map(furthest));
    for (let k = -edits; k <= edits; k += 2) {
      const down = k === -edits || (k !== edits && get(furthest, k - 1) < get(furthest, k + 1));
      let x = down ? get(furthest, k + 1) : get(furthest, k - 1) + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x += 1;
      furthest.set(k, x);
      if (x >= a.length && x - k >= b.length) return walkBack(trace, a, b);
    }
  }
  return null;
}

function walkBack(trace, a, b) {
  const pairs = [];
  let x = a.length;
  let y = b.length;
  for (let edits = trace.length - 1; edits >= 0; edits -= 1) {
    const furthest = trace[edits];
    const k = x - y;
    const down = k === -edits || (k !== edits && get(furthest, k - 1) < get(furthest, k + 1));
    const before = down ? k + 1 : k - 1;
    const fromX = edits ? get(furthest, before) : 0;
    const fromY = edits ? fromX - before : 0;
    while (x > fromX && y > fromY) pairs.push([(x -= 1), (y -= 1)]);
    x = fromX;
    y = fromY;
  }
  return pairs;
}

const get = (furthest, k) => furthest.get(k) ?? -1;

/** The outcome in a sentence. */
export function verdict({ left, right, first, exact }, counts, done) {
  const so = done ? "" : " so far";
  if (first < 0) return counts[0] ? `Identical${so}: ${counts[0]} tokens.` : "Nothing to compare yet.";
  const differing = [left, right].map((marks) => marks.filter(Boolean).length);
  const from = first === 0 ? "from the first token" : `the same up to token ${first}`;
  if (!exact) return `Different texts${so}: ${from}.`;
  return `${differing[0]} of ${counts[0]} and ${differing[1]} of ${counts[1]} tokens differ${so}: ${from}.`;
}
