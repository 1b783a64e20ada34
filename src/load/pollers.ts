/** What came of one turn of a poller. `paused`: it was not allowed to receive; `over`: there is nothing to do any more. */
export type Turn = 'full' | 'some' | 'empty' | 'waited' | 'paused' | 'failed' | 'over';

/**
 * Runs overlapping pollers: one to begin with, one more whenever a poll comes back full, one less whenever one comes
 * back empty, and a single one while receiving fails or is paused.
 *
 * @param options `max` pollers; `turn` does one poll, and `over` ends every poller after the turn it is in
 * @throws the first error that `turn` throws, when all pollers have ended
 */
export function runPollers(options: { max: number; turn: () => Promise<Turn> }): Promise<void> {
  const state = { wanted: 1, running: 0 };

  return new Promise((resolve, reject) => {
    let failure: { error: unknown } | undefined;

    const grow = (): void => {
      while (state.running < state.wanted) {
        state.running += 1;
        void poll();
      }
    };

    const poll = async (): Promise<void> => {
      try {
        while (state.running <= state.wanted) {
          const turn = await options.turn();
          // Once it is over, it stays over, whatever the other pollers' last turns bring.
          if (state.wanted > 0) state.wanted = nextWanted(state.wanted, turn, options.max);
          grow();
        }
      } catch (error) {
        failure ??= { error };
        state.wanted = 0;
      } finally {
        state.running -= 1;
        if (state.running === 0 && failure === undefined) resolve();
        else if (state.running === 0) reject(failure?.error);
      }
    };

    grow();
  });
}

function nextWanted(wanted: number, turn: Turn, max: number): number {
  switch (turn) {
    case 'full':
      return Math.min(max, wanted + 1);
    case 'empty':
      return Math.max(1, wanted - 1);
    case 'paused':
    case 'failed':
      return 1;
    case 'over':
      return 0;
    default:
      return wanted;
  }
}
