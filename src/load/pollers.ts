/** The result of a poller's turn. `paused`: receiving was not allowed; `over`: there is nothing left to do. */
export type Turn = 'full' | 'some' | 'empty' | 'waited' | 'paused' | 'failed' | 'over';

/**
 * Runs overlapping pollers: at first one, one more after each full poll, one less after each empty poll, and one while
 * receiving fails or is paused.
 *
 * @param options `max` pollers; `turn` does one poll, and after `over` each poller ends with its turn
 * @throws the first error of `turn`, after all pollers have ended
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
          // Once it is over, it stays over, whatever the last turns of other pollers return.
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
