// SPDX-License-Identifier: LGPL-2.1-or-later
// A table sorted by the buttons in its headers. An update replaces only the rows that changed.

import {focusOn, make} from "./dom.js";

const names = (column) => `at-${column.name}${column.numeric ? " number" : ""}`;

/**
 * `columns` are {name, label, numeric, cell(row), value(row)}: `cell` makes what is shown, `value` is what is sorted by;
 * a column without value is not sorted by. The first column heads its row. `key(row)` tells rows apart.
 */
export class Table {
  constructor({caption, columns, key, sort, descending = false}) {
    this.columns = columns;
    this.key = key;
    this.sort = sort;
    this.descending = descending;
    this.rows = [];
    this.known = new Map();
    this.headers = columns.map((column) => this.header(column));
    this.body = make("tbody");
    this.element = make(
      "table",
      {class: "sorted", role: "table"},
      make("caption", {class: "unseen"}, caption),
      make("thead", {role: "rowgroup"}, make("tr", {role: "row"}, ...this.headers)),
      this.body,
    );
    this.body.setAttribute("role", "rowgroup");
    this.mark();
  }

  header(column) {
    const label = column.value
      ? make("button", {type: "button", "data-key": `sort-${column.name}`, click: () => this.by(column)}, column.label)
      : column.label;
    return make("th", {scope: "col", role: "columnheader", class: names(column)}, label);
  }

  /** Sort by this column; reverse the order if it is already sorted by it. Numbers begin with the largest. */
  by(column) {
    const isNumber = this.rows.length > 0 && typeof column.value(this.rows[0]) === "number";
    this.descending = this.sort === column.name ? !this.descending : isNumber;
    this.sort = column.name;
    this.mark();
    this.show(this.rows);
  }

  mark() {
    this.columns.forEach((column, index) => {
      const now = column.name === this.sort;
      if (now) this.headers[index].setAttribute("aria-sort", this.descending ? "descending" : "ascending");
      else this.headers[index].removeAttribute("aria-sort");
    });
  }

  /** Show these rows; those whose keys are among `fresh` are marked for a moment. */
  show(rows, fresh = new Set()) {
    this.rows = rows;
    const before = this.known;
    const now = new Map();
    for (const row of this.sorted(rows)) {
      const key = this.key(row);
      const facts = JSON.stringify(row);
      const old = before.get(key);
      now.set(key, old && old.facts === facts ? old : {facts, node: this.row(row, old?.node, fresh.has(key))});
    }
    this.known = now;
    const wanted = [...now.values()].map((one) => one.node);
    if (
      wanted.length !== this.body.children.length ||
      wanted.some((node, index) => node !== this.body.children[index])
    ) {
      const focused = this.body.contains(document.activeElement) ? document.activeElement : null;
      this.body.replaceChildren(...wanted);
      if (focused) focusOn(focused.isConnected ? focused.dataset.key : "");
    }
  }

  /** A row; in place of an old one, the focus stays where it was. */
  row(row, old, fresh) {
    const cells = this.columns.map((column, index) =>
      make(
        index ? "td" : "th",
        {
          role: index ? "cell" : "rowheader",
          scope: index ? null : "row",
          "data-label": column.label,
          class: names(column),
        },
        column.cell(row),
      ),
    );
    const node = make("tr", {role: "row", class: fresh ? "fresh" : ""}, ...cells);
    const focused = old?.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
    if (focused) {
      old.replaceWith(node);
      focusOn(focused);
    }
    return node;
  }

  sorted(rows) {
    const column = this.columns.find((one) => one.name === this.sort);
    if (!column) return rows;
    const order = (one, other) => {
      const [a, b] = [column.value(one), column.value(other)];
      const found = typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en", {numeric: true});
      return (this.descending ? -found : found) || (this.key(one) < this.key(other) ? -1 : 1);
    };
    return [...rows].sort(order);
  }
}
