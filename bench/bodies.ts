import { loginEvents } from '../local/send/events.ts';

/** Of a batch that is mostly known, the share of values that the vault does not have yet. */
export const MOSTLY_KNOWN = 0.02;

/** How many devices and addresses are known. */
const KNOWN = 20_000;

interface Values {
  ip: string;
  device_id: string;
}

/** Login events of which a chosen share of the values is new to the vault, and the rest is known to it. */
export class Bodies {
  readonly #events = loginEvents({ seed: 'bench', duplicates: 0, malformed: 0 });
  readonly #known: Values[] = [];
  #fresh = 0;

  /** Every value that is known later, once: to be masked before anything is measured. */
  all(): string[] {
    const bodies = Array.from({ length: KNOWN }, () => this.#events.next().value);
    this.#known.push(...bodies.map((body) => JSON.parse(body) as Values));
    return bodies;
  }

  /** @param share of the values, from 0 to 1, that have never been seen */
  take(rows: number, share: number): string[] {
    return Array.from({ length: rows }, () => {
      const event = JSON.parse(this.#events.next().value) as Values;
      if (Math.random() >= share) event.ip = this.#one().ip;
      if (Math.random() >= share) event.device_id = this.#one().device_id;
      // Of the generator's device ids there are not enough: a number behind makes them new.
      else event.device_id = `${event.device_id}-${this.#fresh++}`;
      return JSON.stringify(event);
    });
  }

  #one(): Values {
    return this.#known[Math.floor(Math.random() * KNOWN)]!;
  }
}
