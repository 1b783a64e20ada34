import { maskBatch } from '../src/work/mask-batch.ts';
import { task } from '../src/work/task.ts';

export default task('mask_batch', (context, payload) => maskBatch(context, String(payload['batch_id'])));
