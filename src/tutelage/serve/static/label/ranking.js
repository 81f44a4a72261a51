// A ranking in the making, without any drawing: groups of answer ids, best first (a group is a tie), and the answers
// that have no place yet. Every operation gives a new ranking; one that changes nothing gives the same object.

/** {order: ids as shown, groups: [[id]], chosen: id | null}. */
export function start(order, groups = []) {
  return { order, groups, chosen: null };
}

export function unplaced(ranking) {
  const placed = new Set(ranking.groups.flat());
  return ranking.order.filter((id) => !placed.has(id));
}

export function complete(ranking) {
  return unplaced(ranking).length === 0;
}

/** Which group an answer is in, -1: none yet. */
export function rankOf(ranking, id) {
  return ranking.groups.findIndex((group) => group.includes(id));
}

function without(groups, id) {
  return groups.map((group) => group.filter((other) => other !== id));
}

function made(ranking, groups, chosen) {
  const { order } = ranking;
  // within a tie the order means nothing: always that of showing, so that nothing seems to be said
  const sorted = groups.filter((group) => group.length).map((group) => order.filter((id) => group.includes(id)));
  return { order, groups: sorted, chosen };
}

export function choose(ranking, id) {
  return ranking.chosen === id ? ranking : { ...ranking, chosen: id };
}

/** What pressing an answer's number does: one without a place becomes the next best, a placed one is chosen. */
export function pick(ranking, id) {
  return rankOf(ranking, id) < 0 ? made(ranking, [...ranking.groups, [id]], id) : choose(ranking, id);
}

/** Put an answer on its own between groups: before the group that is now number `at` (its own emptied one counts). */
export function insert(ranking, id, at) {
  const groups = without(ranking.groups, id);
  groups.splice(at, 0, [id]);
  return made(ranking, groups, id);
}

/** Put an answer into group `at`. */
export function join(ranking, id, at) {
  const groups = without(ranking.groups, id);
  groups[at] = [...groups[at], id];
  return made(ranking, groups, id);
}

/** Take an answer's place away. */
export function remove(ranking, id) {
  return rankOf(ranking, id) < 0 ? ranking : made(ranking, without(ranking.groups, id), id);
}

/** One step up (-1) or down (1): out of a tie first, then past the neighbour. */
export function move(ranking, id, step) {
  const at = rankOf(ranking, id);
  if (at < 0) return step < 0 ? pick(ranking, id) : ranking;
  const tied = ranking.groups[at].length > 1;
  if (step < 0) return tied || at > 0 ? insert(ranking, id, tied ? at : at - 1) : ranking;
  if (tied) return insert(ranking, id, at + 1);
  return at < ranking.groups.length - 1 ? insert(ranking, id, at + 2) : ranking;
}

/** As good as the one above it; once more: just below it again. */
export function tie(ranking, id) {
  const at = rankOf(ranking, id);
  if (at < 0) return ranking;
  if (ranking.groups[at].length > 1) return insert(ranking, id, at + 1);
  return at > 0 ? join(ranking, id, at - 1) : ranking;
}

/** The ranking with its last unplaced answer last; of several unplaced ones nothing is known, and it stays. */
export function filled(ranking) {
  const left = unplaced(ranking);
  return left.length === 1 ? pick(ranking, left[0]) : ranking;
}
