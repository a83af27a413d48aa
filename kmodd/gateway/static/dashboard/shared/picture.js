// SPDX-License-Identifier: LGPL-2.1-or-later
// The graph in pixels: a box for each module that is used or uses one, and a line for each use.

import {arrange, components} from "./layers.js";

const ROW = 24;
export const BOX = 18;
const BETWEEN = 56;
export const LETTER = 7.3;
export const PADDING = 8;
const MARGIN = 12;

const width = (name) => name.length * LETTER + 2 * PADDING;

/** All components below each other, in pixels: {boxes: Map name → {x, y, width}, lines, width, height}. */
export function picture(relations) {
  const groups = components(relations.names, relations.edges).filter((group) => group.length > 1);
  const boxes = new Map();
  const lines = [];
  let top = MARGIN;
  let right = 0;
  for (const group of groups) {
    const members = new Set(group);
    const made = arrange(
      group,
      relations.edges.filter(([user]) => members.has(user)),
    );
    const widths = Array(made.columns).fill(0);
    for (const [name, {column}] of made.places) widths[column] = Math.max(widths[column], width(name));
    const lefts = widths.map(
      (_, index) => MARGIN + widths.slice(0, index).reduce((sum, one) => sum + one + BETWEEN, 0),
    );
    const y = (row) => top + row * ROW + BOX / 2;
    for (const [name, {column, row}] of made.places) boxes.set(name, {x: lefts[column], y: y(row), width: width(name)});
    for (const {user, used, points} of made.lines) {
      lines.push({
        user,
        used,
        path: curve(
          points.map(({column, row}, index) => ({
            from: lefts[column],
            to: lefts[column] + (index === 0 ? boxes.get(user).width : widths[column]),
            y: y(row),
          })),
        ),
      });
    }
    right = Math.max(right, lefts.at(-1) + widths.at(-1));
    top += made.rows * ROW + ROW;
  }
  return {boxes, lines, width: right + MARGIN, height: top};
}

/** From box to box: flat through the columns it crosses, bent between them. */
function curve(points) {
  const parts = [`M${points[0].to} ${points[0].y}`];
  for (let index = 1; index < points.length; index += 1) {
    const [before, after] = [points[index - 1], points[index]];
    const bend = (after.from - before.to) / 2;
    parts.push(`C${before.to + bend} ${before.y} ${after.from - bend} ${after.y} ${after.from} ${after.y}`);
    if (index < points.length - 1) parts.push(`H${after.to}`);
  }
  return parts.join("");
}
