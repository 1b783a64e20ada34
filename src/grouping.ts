/** Gathers items into groups, in order. An item that is too large for any group is a group of its own. */
export class Grouping<T> {
  readonly #max: { items: number; bytes: number };
  readonly #sizeOf: (item: T) => number;
  #group: T[] = [];
  #bytes = 0;

  /**
   * @param max the most items of a group, and the most bytes
   * @param sizeOf an item's size in bytes
   */
  constructor(max: { items: number; bytes: number }, sizeOf: (item: T) => number) {
    this.#max = max;
    this.#sizeOf = sizeOf;
  }

  /** Adds an item. Returns the group before it if the item does not fit into that group. */
  add(item: T): T[][] {
    const bytes = this.#sizeOf(item);
    const isFull = this.#group.length === this.#max.items || this.#bytes + bytes > this.#max.bytes;
    const ended = isFull ? this.rest() : [];
    this.#group.push(item);
    this.#bytes += bytes;
    return ended;
  }

  /** Ends the last group and returns it, unless it is empty. */
  rest(): T[][] {
    const group = this.#group;
    this.#group = [];
    this.#bytes = 0;
    return group.length === 0 ? [] : [group];
  }
}
