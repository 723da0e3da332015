//! Work on many namespaces, several at a time.

use std::sync::Mutex;
use std::sync::PoisonError;

/// Threads at most: what they wait for is a lock of the kernel's (RTNL) as often as not.
const THREADS: usize = 4;
/// So few are done one after the other.
const FEW: usize = 4;

/// Does `work` for each of `all`, on threads of its own where there are many; results in their order.
pub(super) fn each<T: Send, R: Send>(all: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let count = all.len();
    if count < FEW {
        return all.into_iter().map(work).collect();
    }
    let queue = Mutex::new(all.into_iter().enumerate());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let mut done: Vec<(usize, R)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    let mut done = Vec::new();
                    while let Some((index, item)) = next() {
                        done.push((index, work(item)));
                    }
                    done
                })
            })
            .collect();
        let joined = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
        joined.flat_map(|done| done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    done.sort_unstable_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::each;

    #[test]
    fn results_are_in_order_however_many_there_are() {
        for count in [0, 1, 3, 4, 5, 100] {
            let expected: Vec<usize> = (0..count).map(|number| number * 2).collect();
            assert_eq!(each((0..count).collect(), |number| number * 2), expected, "{count}");
        }
    }
}
