// SPDX-License-Identifier: LGPL-2.1-or-later
// Layout of the graph: columns from modules without users, on the left, to modules without dependencies, on the right.
//
// Sugiyama's way in four steps: a column for each node by its longest path, invisible nodes where a line crosses a
// column, an order within columns that crosses few lines, and places that keep lines straight. No randomness: the same
// modules make the same picture.

const SWEEPS = 12;
const SETTLING = 24;

/** Sets of nodes that hang together, the largest first. */
export function components(nodes, edges) {
  const near = new Map(nodes.map((name) => [name, []]));
  for (const [user, used] of edges) {
    near.get(user).push(used);
    near.get(used).push(user);
  }
  const seen = new Set();
  const found = [];
  for (const start of nodes) {
    if (seen.has(start)) continue;
    const group = [];
    const rest = [start];
    seen.add(start);
    while (rest.length) {
      const name = rest.pop();
      group.push(name);
      for (const other of near.get(name)) {
        if (!seen.has(other)) {
          seen.add(other);
          rest.push(other);
        }
      }
    }
    found.push(group.sort());
  }
  return found.sort((one, other) => other.length - one.length || (one[0] < other[0] ? -1 : 1));
}

function columnsOf(nodes, edges) {
  const users = new Map(nodes.map((name) => [name, []]));
  for (const [user, used] of edges) users.get(used).push(user);
  const known = new Map();
  const column = (name, above) => {
    if (known.has(name)) return known.get(name);
    if (above.has(name)) return 0; // the kernel has no cycles, but one must not hang this page
    const below = new Set(above).add(name);
    const found = Math.max(-1, ...users.get(name).map((user) => column(user, below))) + 1;
    known.set(name, found);
    return found;
  };
  for (const name of nodes) column(name, new Set());
  // Who is used from one place alone sits right beside it already; who uses nothing near moves towards what it uses.
  const targets = new Map(nodes.map((name) => [name, []]));
  for (const [user, used] of edges) targets.get(user).push(used);
  for (const name of nodes) {
    const to = targets.get(name);
    if (!users.get(name).length && to.length)
      known.set(name, Math.max(0, Math.min(...to.map((one) => known.get(one))) - 1));
  }
  return known;
}

const average = (numbers) => numbers.reduce((sum, number) => sum + number, 0) / numbers.length;

/**
 * Places for one component: {places: Map name → {column, row}, lines: [{user, used, points: [{column, row}]}], rows}.
 * Rows are not whole numbers; two nodes of a column are at least one row apart.
 */
export function arrange(nodes, edges) {
  const column = columnsOf(nodes, edges);
  const layers = [];
  const add = (node) => {
    (layers[node.column] ??= []).push(node);
    return node;
  };
  const byName = new Map(
    nodes.map((name) => [name, add({column: column.get(name), left: [], right: [], thin: false})]),
  );
  const lines = edges.map(([user, used]) => {
    const chain = [byName.get(user)];
    const end = byName.get(used);
    for (let at = chain[0].column + 1; at < end.column; at += 1)
      chain.push(add({column: at, left: [], right: [], thin: true}));
    chain.push(end);
    for (let index = 1; index < chain.length; index += 1) {
      chain[index - 1].right.push(chain[index]);
      chain[index].left.push(chain[index - 1]);
    }
    return {user, used, chain};
  });
  const filled = layers.map((layer) => layer || []);
  order(filled);
  settle(filled);
  const place = ({column: at, row}) => ({column: at, row});
  const all = filled.flat();
  const top = Math.min(...all.map((node) => node.row));
  for (const node of all) node.row -= top;
  return {
    places: new Map([...byName].map(([name, node]) => [name, place(node)])),
    lines: lines.map(({user, used, chain}) => ({user, used, points: chain.map(place)})),
    rows: Math.max(...all.map((node) => node.row)) + 1,
    columns: filled.length,
  };
}

function order(layers) {
  const number = () =>
    layers.forEach((layer) =>
      layer.forEach((node, index) => {
        node.index = index;
      }),
    );
  number();
  for (let sweep = 0; sweep < SWEEPS; sweep += 1) {
    const side = sweep % 2 ? "right" : "left";
    const inOrder = sweep % 2 ? [...layers].reverse() : layers;
    for (const layer of inOrder) {
      for (const node of layer)
        node.wish = node[side].length ? average(node[side].map((other) => other.index)) : node.index;
      layer.sort((one, other) => one.wish - other.wish || one.index - other.index);
      layer.forEach((node, index) => {
        node.index = index;
      });
    }
  }
}

/** Rows: each node is drawn to its neighbours, and pushes the others of its column away. */
function settle(layers) {
  const gap = (one, other) => (one.thin || other.thin ? 0.7 : 1);
  for (const layer of layers) {
    let row = 0;
    layer.forEach((node, index) => {
      if (index) row += gap(layer[index - 1], node);
      node.row = row;
    });
  }
  for (let turn = 0; turn < SETTLING; turn += 1) {
    const inOrder = turn % 2 ? [...layers].reverse() : layers;
    for (const layer of inOrder) {
      const wishes = layer.map((node) => {
        const near = [...node.left, ...node.right];
        return near.length ? average(near.map((other) => other.row)) : node.row;
      });
      spread(layer, wishes, gap);
    }
  }
}

/** The rows nearest to the preferred ones, in order and apart: blocks that would overlap move as one (pool adjacent violators). */
function spread(layer, wishes, gap) {
  const offsets = [];
  layer.forEach((node, index) => {
    offsets.push(index ? offsets[index - 1] + gap(layer[index - 1], node) : 0);
  });
  const blocks = [];
  wishes.forEach((wish, index) => {
    blocks.push({sum: wish - offsets[index], count: 1});
    while (blocks.length > 1) {
      const [before, last] = blocks.slice(-2);
      if (before.sum / before.count <= last.sum / last.count) break;
      blocks.splice(-2, 2, {sum: before.sum + last.sum, count: before.count + last.count});
    }
  });
  let index = 0;
  for (const block of blocks) {
    for (let left = block.count; left; left -= 1, index += 1)
      layer[index].row = block.sum / block.count + offsets[index];
  }
}
