// SPDX-License-Identifier: LGPL-2.1-or-later
// Who uses whom among the loaded modules.

/** Made from rows of the list of loaded modules. */
export class Relations {
  constructor(rows) {
    this.rows = new Map(rows.map((row) => [row.name, row]));
    this.names = [...this.rows.keys()].sort();
    // A holder that disappeared between two reads is left out.
    this.users = new Map(
      this.names.map((name) => [
        name,
        this.rows
          .get(name)
          .holders.filter((one) => this.rows.has(one))
          .sort(),
      ]),
    );
    this.needs = new Map(this.names.map((name) => [name, []]));
    for (const [name, users] of this.users) for (const user of users) this.needs.get(user).push(name);
    this.edges = this.names.flatMap((name) =>
      this.needs
        .get(name)
        .sort()
        .map((used) => [name, used]),
    );
  }

  /** Everything that can be reached from a module by `users` or by `needs`, without itself. */
  reach(name, way) {
    const found = new Set();
    const rest = [...(way.get(name) || [])];
    while (rest.length) {
      const next = rest.pop();
      if (found.has(next)) continue;
      found.add(next);
      rest.push(...way.get(next));
    }
    return found;
  }

  /** In words, for screen readers. */
  words(name) {
    const list = (names) => (names.length ? names.join(", ") : "no module");
    return `${name}: used by ${list(this.users.get(name))}; needs ${list(this.needs.get(name))}`;
  }
}
